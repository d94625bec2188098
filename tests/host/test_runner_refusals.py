"""What the device program refuses: always one line of JSON and a status, never a crash."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeopt.cli.places import cache_folder
from tests.host.runner_kit import Built, build_native, save_samples

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_native(cache_folder(), tmp_path_factory.mktemp("native"))


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a run that failed in the agreed way."""
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    document = json.loads(lines[0])
    assert list(document) == ["error"]
    return str(document["error"])


#: What the first record's fields may not be, as (offset in the file, bytes), and the answer.
BROKEN = {
    "magic": (0, b"X", "not a weights file"),
    "count": (8, b"\xff" * 8, "more records than the file can hold"),
    "type": (16, b"\x09", "bad type"),
    "bits": (17, b"\x07", "bad type"),
    "lanes": (18, b"\x02", "bad type"),
    "rank": (20, b"\x09", "bad rank"),
    "rank-overflow": (20, b"\xff" * 4, "bad rank"),
    "shape": (24, b"\x01", "shape and size disagree"),
    "negative-shape": (31, b"\xff", "shape and size disagree"),
    "shape-overflow": (24, (2**62).to_bytes(8, "little") * 2, "shape and size disagree"),
    "offset": (88, (2**40).to_bytes(8, "little"), "outside of the file"),
    "offset-overflow": (88, b"\xff" * 8, "outside of the file"),
    "alignment": (88, b"\x08", "not aligned"),
    "size": (96, b"\xff" * 8, "shape and size disagree"),
    "flags": (104, b"\x03", "unknown flags"),
}


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_a_broken_weights_file_is_an_error_and_no_crash(
    native: Built, tmp_path: Path, case: str
) -> None:
    offset, content, message = BROKEN[case]
    data = bytearray((native.folder / "weights.bin").read_bytes())
    data[offset : offset + len(content)] = content
    (tmp_path / "weights.bin").write_bytes(data)
    save_samples(tmp_path / "ids.npy", seed=0)
    done = native.run("--weights", tmp_path / "weights.bin", "--input", tmp_path / "ids.npy")
    assert done.returncode == 1
    assert message in refusal(done)


@pytest.mark.parametrize("size", [0, 7, 15, 100, 200, 20000])
def test_a_weights_file_cut_short_is_an_error(native: Built, tmp_path: Path, size: int) -> None:
    data = (native.folder / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(data[:size])
    done = native.run("--weights", tmp_path / "weights.bin")
    assert done.returncode == 1
    assert "weights.bin" in refusal(done)


#: A change of a good input file, and the answer.
INPUTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "short": (lambda data: data[:-1], "size and header disagree"),
    "long": (lambda data: data + b"\0", "size and header disagree"),
    "magic": (lambda data: b"X" + data[1:], "not an npy file"),
    "empty": (lambda data: b"", "shorter than its header"),
    "header-length": (lambda data: data[:8] + b"\xff\xff" + data[10:], "header is too long"),
    "fortran": (lambda data: data.replace(b"False", b"True "), "not in C order"),
    "type": (lambda data: data.replace(b"<i8", b"<c8"), "unsupported element type"),
    "big-endian": (lambda data: data.replace(b"<i8", b">i8"), "unsupported element type"),
    "width": (lambda data: data.replace(b"<i8", b"<i3"), "unsupported element type"),
    "other-type": (lambda data: data.replace(b"<i8", b"<f8"), "the model failed"),
    "shape": (lambda data: data.replace(b"(3, 4)", b"(3, x)"), "bad shape"),
    "negative": (lambda data: data.replace(b"(3, 4)", b"(-3,4)"), "bad shape"),
    "samples": (lambda data: data.replace(b"(3, 4)", b"(4, 3)"), "not the 3 samples"),
    "rank": (lambda data: data.replace(b"(3, 4)", b"(12,) "), "not the 3 samples"),
    "inner": (lambda data: data.replace(b"(3, 4), }", b"(3,2,2),}"), "the model failed"),
}


@pytest.mark.parametrize("case", sorted(INPUTS))
def test_a_broken_input_is_an_error_and_no_crash(native: Built, tmp_path: Path, case: str) -> None:
    change, message = INPUTS[case]
    path = tmp_path / "ids.npy"
    save_samples(path, seed=0)
    path.write_bytes(change(path.read_bytes()))
    done = native.run(
        *("--weights", native.folder / "weights.bin", "--input", path),
        *("--samples", "3", "--iterations", "3", "--output", tmp_path / "out"),
    )
    assert done.returncode == 1
    assert message in refusal(done)


@pytest.mark.parametrize(("name", "header"), [("ids.npy", 128), ("weights.bin", 240)])
def test_no_change_of_a_header_crashes_the_program(
    native: Built, tmp_path: Path, name: str, header: int
) -> None:
    save_samples(tmp_path / "ids.npy", seed=0)
    shutil.copy(native.folder / "weights.bin", tmp_path)
    good = (tmp_path / name).read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(good)
        data[random.integers(0, header)] = random.integers(0, 256)
        (tmp_path / name).write_bytes(data)
        done = native.run(
            *("--weights", tmp_path / "weights.bin", "--input", tmp_path / "ids.npy"),
            *("--samples", "3", "--iterations", "3"),
        )
        assert done.returncode in (0, 1), done
        refused += done.returncode
    assert refused > 10


def test_arguments_that_the_model_does_not_take_are_an_error(native: Built, tmp_path: Path) -> None:
    save_samples(tmp_path / "ids.npy", seed=0)
    weights = ("--weights", native.folder / "weights.bin")
    one = ("--input", tmp_path / "ids.npy", "--samples", "3")
    assert "the model failed" in refusal(native.run(*weights))
    assert "the model failed" in refusal(native.run(*one))
    assert "the model failed" in refusal(native.run(*weights, *one, *one[:2]))


def test_missing_files_are_named(native: Built, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    runs = {
        "nothing.npy": native.run("--input", tmp_path / "nothing.npy"),
        "nothing.bin": native.run("--weights", tmp_path / "nothing.bin"),
        "not a regular file": native.run("--weights", tmp_path / "pipe"),
        "nothing.so": Built(native.command[:1], tmp_path, native.table, native.dense).run(
            "--model", tmp_path / "nothing.so"
        ),
    }
    for name, done in runs.items():
        assert done.returncode == 1
        assert name in refusal(done)


def test_what_can_not_be_written_is_an_error(native: Built, tmp_path: Path) -> None:
    save_samples(tmp_path / "ids.npy", seed=0)
    common = ("--weights", native.folder / "weights.bin", "--input", tmp_path / "ids.npy")
    done = native.run(*common, "--samples", "3", "--iterations", "3", "--output", "/proc/none")
    assert "cannot create /proc/none" in refusal(done)
    with Path("/dev/full").open("w") as full:
        command = [*native.command, *map(str, common), "--samples", "3"]
        ended = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert json.loads(ended.stderr) == {"error": "cannot write to stdout"}


@pytest.mark.parametrize(
    "options",
    [
        ("--frob", "1"),
        ("--samples",),
        ("--samples", "0"),
        ("--samples", "2x"),
        ("--cold-bytes", "1073741825"),
        ("--threads", "99999999999999999999"),
        ("--output", "out", "--samples", "3", "--iterations", "2"),
    ],
)
def test_bad_usage_has_a_status_of_its_own(native: Built, options: tuple[str, ...]) -> None:
    done = native.run(*options)
    assert done.returncode == 2
    refusal(done)


def test_a_message_with_quotes_and_newlines_stays_one_line_of_json(native: Built) -> None:
    assert 'a"b\\c\nd' in refusal(native.run("--weights", 'a"b\\c\nd'))
