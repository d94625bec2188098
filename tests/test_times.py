"""Times of kernels: what is known of them, and what deployments correct."""

from pathlib import Path

import pytest

from edgeopt.errors import ConfigError
from edgeopt.times import (
    KernelTime,
    Times,
    WholeTime,
    name_kernel,
    read_times,
    write_times,
)

TIMES = Times(
    edgeopt="1",
    threads=2,
    kernels={
        name_kernel("a", 1000): KernelTime(kind="MatMul FLOAT", ns=30, bound=10),
        name_kernel("b", 1000): KernelTime(kind="MatMul INT4", ns=10, bound=10),
    },
    wholes={
        "m": WholeTime(methods=("float32",), weights=1000, ns=80, bound=40, tail=1.2),
        # It did not run on the board.
        "large": WholeTime(methods=("float32",)),
    },
)


def test_a_file_of_another_version_other_threads_or_tiles_counts_for_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "times" / "rpi4.board.json"
    assert read_times(path, edgeopt="1", threads=2) == Times(edgeopt="1", threads=2)
    write_times(path, TIMES)
    assert read_times(path, edgeopt="1", threads=2) == TIMES
    assert read_times(path, edgeopt="2", threads=2) == Times(edgeopt="2", threads=2)
    assert read_times(path, edgeopt="1", threads=4) == Times(edgeopt="1", threads=4)
    tuned = read_times(path, edgeopt="1", threads=2, tiles="t")
    assert tuned == Times(edgeopt="1", threads=2, tiles="t")


def test_a_broken_file_is_told_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(TIMES.model_dump_json().replace('"ns":30.0', '"ns":0.0'))
    with pytest.raises(ConfigError, match=r"kernels.a 10.ns: .*\n.*remove it"):
        read_times(path, edgeopt="1", threads=2)


def test_a_kernel_that_was_not_measured_is_as_others_of_its_kind_then_as_all() -> None:
    assert TIMES.kernel("a", "MatMul FLOAT", 10) == 30
    assert TIMES.kernel("new", "MatMul FLOAT", 20) == 60
    assert TIMES.kernel("new", "Conv FLOAT", 20) == 40
    assert Times(edgeopt="1", threads=1).kernel("new", "Conv FLOAT", 20) == 20


def test_a_kernel_takes_longer_among_more_weights_than_caches_hold() -> None:
    many = {name_kernel("a", 10**8): KernelTime(kind="MatMul FLOAT", ns=50, bound=10)}
    whole = {"big": WholeTime(methods=("float32",), weights=10**8)}
    table = TIMES.model_copy(
        update={"kernels": TIMES.kernels | many, "wholes": TIMES.wholes | whole}
    )
    assert table.kernel("a", "MatMul FLOAT", 10, model="m") == 30
    assert table.kernel("a", "MatMul FLOAT", 10, model="big") == 50
    shared = {"blocked": WholeTime(methods=("float32",), weights=10**8, share=0.5)}
    table = table.model_copy(update={"wholes": table.wholes | shared})
    assert table.kernel("a", "MatMul FLOAT", 10, model="blocked") == 25
    # Of a model that was cut, say, nothing else is known than that it may be as slow.
    assert table.kernel("a", "MatMul FLOAT", 10, model="cut") == 50
    # Retrained or with another head it is the same size.
    assert name_kernel("a", 10**8) == name_kernel("a", 10**8 + 4096)


def test_a_model_that_did_not_run_is_as_the_others() -> None:
    assert TIMES.others("m", 40) == TIMES.others("large", 40) == TIMES.others("new", 40) == 80
    assert TIMES.tail("large") == 1.2


def test_a_deployment_corrects_the_kinds_that_it_has_and_no_others() -> None:
    corrected = TIMES.corrected("m", {"MatMul INT4": 100}, missing=30)
    assert corrected.kernel("b", "MatMul INT4", 10, model="m") == pytest.approx(13)
    assert corrected.kernel("a", "MatMul FLOAT", 10, model="m") == 30
    again = corrected.corrected("m", {"MatMul INT4": 130}, missing=-26)
    assert again.kernel("b", "MatMul INT4", 10, model="m") == pytest.approx(10.4)
    # A machine that did something else meanwhile is not believed beyond a factor of two.
    most = TIMES.corrected("m", {"MatMul INT4": 100}, missing=900)
    assert most.wholes["m"].scales == {"MatMul INT4": 2}
    assert TIMES.corrected("m", {}, missing=900) == TIMES


def test_what_plans_of_one_model_took_is_no_part_of_another_one_that_was_measured() -> None:
    table = TIMES.corrected("m", {"MatMul INT4": 100}, missing=50)
    measured = {"n": WholeTime(methods=("float32",), weights=1000, ns=10, bound=10)}
    table = table.model_copy(update={"wholes": table.wholes | measured})
    assert table.kernel("b", "MatMul INT4", 10, model="n") == 10
    # Of a model that nothing is known of, the mean of the others is the best guess.
    assert table.kernel("b", "MatMul INT4", 10, model="new") == pytest.approx(15)
    table = table.corrected("n", {"MatMul INT4": 10}, missing=-1)
    assert table.kernel("b", "MatMul INT4", 10, model="new") == pytest.approx(12)


def test_what_is_learned_of_a_model_keeps_what_was_measured_of_it() -> None:
    assert TIMES.learned("m", tail=1.5).wholes["m"].ns == 80
    assert TIMES.learned("m", tail=1.5).tail("m") == 1.5
    # It counts as measured only once it was.
    assert TIMES.learned("cut", scales={"Conv INT8": 0.8}).wholes["cut"].methods == ()


def test_a_file_of_an_earlier_schema_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    text = TIMES.model_dump_json().replace('"schema_version":2', '"schema_version":1,"scales":{}')
    path.write_text(text)
    assert read_times(path, edgeopt="1", threads=2) == Times(edgeopt="1", threads=2)
