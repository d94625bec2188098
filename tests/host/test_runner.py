"""The device program, built for real and run: on this machine, and under user-mode emulation."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.cli.places import cache_folder
from edgeopt.compile.weights import read_index, write_weights
from edgeopt.errors import ConfigError
from edgeopt.runner import (
    Machine,
    build_program,
    elf_machine,
    link_model,
    needed_glibc,
    runtime_bytes,
)
from edgeopt.runner.toolchain import TRIPLES, find_toolchain, run_zig
from tests.host.runner_kit import (
    ROWS,
    TOKENS,
    WIDTH,
    Built,
    build_native,
    draw_weights,
    model_objects,
    native_program,
    save_samples,
    transposer,
)

pytestmark = pytest.mark.host

SEEDS = (0, 1, 2)
TYPES = ("bool", "int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64")


@pytest.fixture(scope="module")
def cache() -> Path:
    return cache_folder()


@pytest.fixture(scope="module")
def program(cache: Path) -> Path:
    return native_program(cache)


@pytest.fixture(scope="module")
def native(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_native(cache, tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module", params=["aarch64", "arm"])
def emulated(
    request: pytest.FixtureRequest, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    machine: Machine = request.param
    qemu = shutil.which(f"qemu-{machine}-static")
    if qemu is None:
        pytest.skip(f"no {machine} emulator; run: sudo apt-get install qemu-user-static")
    folder = tmp_path_factory.mktemp(machine)
    objects = model_objects(machine, folder, rows=ROWS, width=WIDTH, tokens=TOKENS, system=True)
    program = build_program(machine, "static", cache=cache, objects=objects)
    assert elf_machine(program) == machine
    assert needed_glibc(program) == ""
    table, dense = draw_weights(folder)
    return Built((qemu, str(program)), folder, table, dense)


def check_outputs(built: Built, folder: Path, seed: int) -> dict[str, Any]:
    """Run three samples twice around; returns the program's document."""
    ids = save_samples(folder / "ids.npy", seed)
    done = built.run(
        *("--weights", built.folder / "weights.bin", "--input", folder / "ids.npy"),
        *("--output", folder / "out", "--samples", "3", "--iterations", "6", "--warmup", "1"),
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    for index, expected in enumerate(built.expect(ids)):
        found = np.load(folder / "out" / f"{index}.npy")
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        assert report["outputs"][index]["shape"] == list(expected.shape)
        assert report["outputs"][index]["dtype"] == "float32"
    return report


@pytest.mark.parametrize("seed", SEEDS)
def test_outputs_are_those_of_numpy(native: Built, tmp_path: Path, seed: int) -> None:
    check_outputs(native, tmp_path, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_outputs_on_arm_are_those_of_numpy(emulated: Built, tmp_path: Path, seed: int) -> None:
    check_outputs(emulated, tmp_path, seed)


def test_the_document_tells_times_memory_and_conditions(native: Built, tmp_path: Path) -> None:
    report = check_outputs(native, tmp_path, seed=0)
    assert report["schema_version"] == 1
    assert report["clock"] == "CLOCK_MONOTONIC_RAW"
    assert len(report["samples_ns"]) == 6
    assert all(0 < duration < 10**9 for duration in report["samples_ns"])
    assert 0 < report["load_ns"] < 10**10
    assert abs(report["realtime_drift_ns"]) < 10**9
    assert 0 <= report["start_ns"] < 10**10
    assert report["warm_ns"][0] == report["first_ns"] > 0
    assert set(report["process"]) == {"cpus", "voluntary", "involuntary"}
    assert report["process"]["cpus"]
    assert min(report["process"]["voluntary"], report["process"]["involuntary"]) >= 0
    memory = report["memory"]
    assert 10**6 < memory["start"] <= memory["loaded"] <= memory["peak"] < 10**8
    assert memory["anonymous"] + memory["file_backed"] <= memory["peak"] * 1.02
    for moment in ("before", "after"):
        assert set(report[moment]) == {"temperature_c", "frequency_khz", "throttled"}


#: A clock of the day that is set forward by an hour between its first look and its second.
JUMP = """
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec* now) {
  static int asked;
  int done = (int)syscall(SYS_clock_gettime, clock, now);
  if (clock == CLOCK_REALTIME && ++asked > 1) now->tv_sec += 3600;
  return done;
}
"""


def test_a_clock_that_is_set_meanwhile_is_noted_and_moves_no_sample(
    native: Built, tmp_path: Path
) -> None:
    (tmp_path / "jump.c").write_text(JUMP)
    shim = tmp_path / "jump.so"
    zig = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1"]
    subprocess.run([*zig, tmp_path / "jump.c", "-o", shim], check=True, capture_output=True)
    save_samples(tmp_path / "ids.npy", seed=0)
    command = ("env", f"LD_PRELOAD={shim}", *native.command)
    done = dataclasses.replace(native, command=command).run(
        *("--weights", native.folder / "weights.bin", "--input", tmp_path / "ids.npy"),
        *("--samples", "3", "--iterations", "6", "--warmup", "1"),
    )
    report = json.loads(done.stdout)
    assert report["realtime_drift_ns"] == pytest.approx(3_600_000_000_000, abs=10**9)
    assert all(0 < duration < 10**9 for duration in report["samples_ns"])


def test_instructions_repeat_or_are_refused_where_the_kernel_counts_none(
    native: Built, tmp_path: Path
) -> None:
    save_samples(tmp_path / "ids.npy", seed=0)
    done = native.run(
        *("--weights", native.folder / "weights.bin", "--input", tmp_path / "ids.npy"),
        *("--samples", "3", "--iterations", "9", "--count-instructions"),
    )
    if done.returncode != 0:
        assert "instructions cannot be counted here: " in json.loads(done.stderr)["error"]
        return
    report = json.loads(done.stdout)
    assert report["clock"] == "INSTRUCTIONS"
    counts = report["samples_ns"]
    assert max(counts) / min(counts) < 1.05


def test_without_warm_up_the_first_inference_is_the_first_sample(
    native: Built, tmp_path: Path
) -> None:
    save_samples(tmp_path / "ids.npy", seed=0)
    done = native.run(
        *("--weights", native.folder / "weights.bin", "--input", tmp_path / "ids.npy"),
        *("--samples", "3", "--iterations", "2", "--warmup", "0"),
    )
    report = json.loads(done.stdout)
    assert report["first_ns"] == report["samples_ns"][0]
    assert report["outputs"] == []


@pytest.mark.parametrize("shape", [(TOKENS,), (1, TOKENS)])
def test_one_sample_comes_with_its_axis_or_without(
    native: Built, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    ids = np.arange(TOKENS, dtype=np.int64).reshape(shape)
    np.save(tmp_path / "ids.npy", ids)
    done = native.run(
        *("--weights", native.folder / "weights.bin", "--input", tmp_path / "ids.npy"),
        *("--output", tmp_path, "--iterations", "1"),
    )
    assert done.returncode == 0, done.stderr
    expected, _ = native.expect(ids.reshape(1, TOKENS))
    np.testing.assert_allclose(np.load(tmp_path / "0.npy"), expected, rtol=1e-5, atol=1e-5)


def test_threads_share_the_work_and_change_no_output(native: Built, tmp_path: Path) -> None:
    ids = save_samples(tmp_path / "ids.npy", seed=0)
    done = native.run(
        *("--weights", native.folder / "weights.bin", "--input", tmp_path / "ids.npy"),
        *("--samples", "3", "--iterations", "3", "--threads", "2", "--output", tmp_path),
    )
    assert json.loads(done.stdout)["threads"] == 2
    expected, _ = native.expect(ids)
    np.testing.assert_allclose(np.load(tmp_path / "0.npy"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_among_other_bytes_an_inference_takes_longer_and_gives_the_same(
    native: Built, tmp_path: Path, threads: str
) -> None:
    ids = save_samples(tmp_path / "ids.npy", seed=0)
    common = (
        *("--weights", native.folder / "weights.bin", "--input", tmp_path / "ids.npy"),
        *("--samples", "3", "--warmup", "3", "--threads", threads),
    )
    # A busy machine only adds: the shortest of many tell.
    warm, cold = (
        json.loads(native.run(*common, "--iterations", count, *others).stdout)["samples_ns"]
        for count, others in (
            ("2000", ()),
            ("100", ("--cold-bytes", "16777216", "--output", tmp_path)),
        )
    )
    assert min(cold) > 1.3 * min(warm)
    expected, _ = native.expect(ids)
    np.testing.assert_allclose(np.load(tmp_path / "0.npy"), expected, rtol=1e-5, atol=1e-5)


def test_every_element_type_goes_in_and_comes_out(
    program: Path, cache: Path, tmp_path: Path
) -> None:
    link_model(transposer(tmp_path, TYPES), "x86_64", tmp_path / "model.so", cache=cache)
    random = np.random.default_rng(0)
    inputs = [random.integers(0, 2, (2, 3, 5)).astype(dtype) for dtype in TYPES]
    command = [str(program), "--model", "model.so", "--output", "out", "--samples", "2"]
    for index, array in enumerate(inputs):
        np.save(tmp_path / f"{index}.npy", array)
        command += ["--input", f"{index}.npy"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60, stdout=subprocess.DEVNULL)
    for index, array in enumerate(inputs):
        found = np.load(tmp_path / "out" / f"{index}.npy")
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array.transpose(0, 2, 1))


def test_the_program_tells_its_version_and_its_own_memory(program: Path) -> None:
    version = json.loads(subprocess.check_output([program, "--version"], timeout=60))
    memory = json.loads(subprocess.check_output([program, "--memory-only"], timeout=60))
    assert version["program"] == "edgeopt-run"
    assert version["tvm"] == "0.27.0.post1"
    assert 10**6 < memory["memory"]["peak"] < 10**7


def test_a_small_model_takes_the_memory_that_is_predicted(native: Built, tmp_path: Path) -> None:
    predicted = runtime_bytes("x86_64", "dynamic")
    peak = check_outputs(native, tmp_path, seed=0)["memory"]["peak"]
    # Kernels differ in how much of a file they map at once; the figure must not be far off.
    assert 0.6 * predicted < peak < 1.4 * predicted


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "arm"])
def test_a_model_is_linked_for_each_machine(machine: Machine, cache: Path, tmp_path: Path) -> None:
    objects = model_objects(machine, tmp_path, rows=ROWS, width=WIDTH, tokens=TOKENS, system=False)
    link_model(objects, machine, tmp_path / "model.so", cache=cache)
    assert elf_machine(tmp_path / "model.so") == machine
    # Code that calls no C library needs none.
    needed = needed_glibc(tmp_path / "model.so") or "0"
    assert [int(part) for part in needed.split(".")] <= [2, 17]


def test_the_program_is_small_and_runs_with_glibc_2_17(program: Path) -> None:
    assert program.stat().st_size < 3_000_000
    assert needed_glibc(program) == "2.17"
    assert elf_machine(program) == "x86_64"


def test_a_program_with_its_model_is_small(emulated: Built) -> None:
    assert Path(emulated.command[1]).stat().st_size < 3_000_000


def test_the_program_names_no_folder_of_this_machine(program: Path) -> None:
    content = program.read_bytes()
    assert b"site-packages" not in content
    assert str(Path.home()).encode() + b"/" not in content


def test_the_program_is_the_same_when_built_again(
    program: Path, cache: Path, tmp_path: Path
) -> None:
    # Everything is compiled and linked anew but zig's own libc++, which takes a minute.
    (tmp_path / "zig").mkdir()
    (tmp_path / "zig" / "global").symlink_to(cache.absolute() / "zig" / "global")
    again = build_program("x86_64", "dynamic", cache=tmp_path)
    assert again != program
    assert again.read_bytes() == program.read_bytes()


def test_a_model_is_the_same_when_linked_again(native: Built, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    objects = [shutil.copy(path, tmp_path / "elsewhere") for path in native.folder.glob("*.o")]
    output = tmp_path / "other-name.so"
    link_model(sorted(map(Path, objects)), "x86_64", output, cache=cache)
    assert output.read_bytes() == (native.folder / "model.so").read_bytes()


def test_a_model_that_calls_what_no_board_has_is_not_linked(
    native: Built, cache: Path, tmp_path: Path
) -> None:
    source = tmp_path / "call.c"
    source.write_text("int cblas_sgemm(void);\nint run(void) { return cblas_sgemm(); }\n")
    command = ["cc", "-target", TRIPLES["x86_64", "dynamic"], "-fPIC", "-c", source.name]
    run_zig(find_toolchain(), command, cache=cache, folder=tmp_path)
    with pytest.raises(ConfigError, match="functions that no board has") as raised:
        link_model([tmp_path / "call.o"], "x86_64", tmp_path / "model.so", cache=cache)
    assert raised.value.why == "cblas_sgemm"
    assert not (tmp_path / "model.so").exists()


def test_only_the_rows_of_a_random_table_that_are_read_become_resident(
    program: Path, cache: Path, tmp_path: Path
) -> None:
    rows, width, tokens = 32768, 512, 32
    objects = model_objects("x86_64", tmp_path, rows=rows, width=width, tokens=tokens, system=False)
    link_model(objects, "x86_64", tmp_path / "model.so", cache=cache)
    table, dense = draw_weights(tmp_path, rows=rows, width=width)
    assert read_index(tmp_path / "weights.bin")[0].size == 64 * 2**20
    write_weights(tmp_path / "plain.bin", [table, dense])
    ids = np.random.default_rng(0).integers(0, rows, tokens, dtype=np.int64)
    np.save(tmp_path / "ids.npy", ids)
    grown = {name: _grown(program, tmp_path / name) for name in ("weights.bin", "plain.bin")}
    if grown["weights.bin"] > 60 * 2**20:
        pytest.skip("this file system keeps all pages in memory; run: pytest --basetemp on a disk")
    assert grown["weights.bin"] < 2 * 2**20
    assert grown["plain.bin"] > 2 * 2**20


# One large table, and two of which each is small and both together are not.
@pytest.mark.parametrize(("rows", "tables"), [(3000, {0}), (2040, {0, 1})])
def test_rows_that_are_not_read_leave_the_cache_where_it_holds_them_with_what_surrounds_them(
    rows: int, tables: set[int], program: Path, cache: Path, tmp_path: Path
) -> None:
    width, tokens, samples = 128, 4, 3
    objects = model_objects("x86_64", tmp_path, rows=rows, width=width, tokens=tokens, system=False)
    link_model(objects, "x86_64", tmp_path / "model.so", cache=cache)
    stored = draw_weights(tmp_path, rows=rows, width=width)
    write_weights(tmp_path / "weights.bin", stored, random=frozenset(tables))
    # Two megabytes that are written at once: a kernel may hold them as one folio.
    whole = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "at-once.bin").write_bytes(whole.ljust(2**21, b"\0"))
    # What is read for the first sample, of what lies behind the table, is there for the others.
    ids = np.arange(0, rows, rows // (samples * tokens), dtype=np.int64)[: samples * tokens]
    np.save(tmp_path / "ids.npy", np.ascontiguousarray(ids.reshape(tokens, samples).T))
    grown = _grown(program, tmp_path / "at-once.bin", samples=samples)
    # A row lies in two pages at most. The rest is code that a busy machine had to read again, and
    # what the kernel's counters are off by: those of unread rows are 150 pages and more.
    most = (2 * samples * tokens + 32) * 4096
    if grown > most and _stays_cached(tmp_path / "at-once.bin"):
        pytest.skip("this file system keeps all pages in memory; run: pytest --basetemp on a disk")
    assert grown <= most


def _grown(program: Path, weights: Path, *, samples: int = 1) -> int:
    """Return the bytes of files that inferences add to those that were there before them."""
    # Pages that are not on the disk yet cannot leave the page cache; deploy syncs as well.
    with weights.open("rb") as file:
        os.fsync(file.fileno())
    count = str(samples)
    done = subprocess.run(
        [
            program, "--model", "model.so", "--weights", weights.name, "--input", "ids.npy",
            "--samples", count, "--iterations", count,
        ],
        cwd=weights.parent, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    memory = json.loads(done.stdout)["memory"]
    return int(memory["file_backed"] - memory["loaded"])


def _stays_cached(path: Path) -> bool:
    """Tell whether pages of a file stay in memory though all of it is to be dropped."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(file.fileno(), [bytearray(4096)], 2**20, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
    return True
