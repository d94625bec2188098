import os
from pathlib import Path

import pytest

from edgeopt.errors import ModelError
from edgeopt.model.guard import External, check_external, check_model_file


def entry(location: str, *, offset: int = 0, length: int | None = 8, needed: int = 8) -> External:
    return External(tensor="w", location=location, offset=offset, length=length, needed=needed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "model"
    (inside / "data").mkdir(parents=True)
    (inside / "w.bin").write_bytes(bytes(16))
    (inside / "data" / "w.bin").write_bytes(bytes(16))
    (tmp_path / "secret").write_bytes(bytes(16))
    return inside


@pytest.mark.parametrize("location", ["w.bin", "data/w.bin", "./w.bin"])
def test_a_plain_file_inside_the_folder_is_taken(folder: Path, location: str) -> None:
    check_external([entry(location, offset=8), entry(location, length=None, needed=16)], folder)


@pytest.mark.parametrize(
    "location",
    ["", "../secret", "data/../../secret", "/etc/passwd", "a\\..\\b", "w.bin\0", "absent", "data"],
)
def test_a_location_that_is_no_file_of_the_folder_is_refused(folder: Path, location: str) -> None:
    with pytest.raises(ModelError, match="external data of tensor 'w' is refused"):
        check_external([entry(location)], folder)


def test_links_are_refused_even_to_files_inside(folder: Path) -> None:
    (folder / "soft").symlink_to(folder / "w.bin")
    (folder / "way").symlink_to(folder / "data")
    (folder / "loop").symlink_to(folder / "loop")
    for location in ("soft", "way/w.bin", "loop"):
        with pytest.raises(ModelError, match="refused"):
            check_external([entry(location)], folder)


def test_a_hard_link_to_a_file_outside_is_refused(folder: Path) -> None:
    os.link(folder.parent / "secret", folder / "hard")
    with pytest.raises(ModelError, match="2 hard links"):
        check_external([entry("hard")], folder)


def test_a_pipe_is_refused_without_waiting_for_its_writer(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        check_external([entry("pipe")], folder)


@pytest.mark.parametrize(
    ("offset", "length", "needed"),
    [(-8, 8, 8), (0, -1, 8), (9, 8, 8), (0, 17, 17), (2**62, 2**62, 8), (0, 8, 12), (24, None, 8)],
)
def test_a_range_that_fits_neither_file_nor_tensor_is_refused(
    folder: Path, offset: int, length: int | None, needed: int
) -> None:
    with pytest.raises(ModelError, match="refused"):
        check_external([entry("w.bin", offset=offset, length=length, needed=needed)], folder)


def test_only_a_regular_file_with_something_in_it_is_a_model(tmp_path: Path) -> None:
    empty = tmp_path / "empty.onnx"
    empty.touch()
    for path in (empty, tmp_path, tmp_path / "absent.onnx", Path("/dev/zero")):
        with pytest.raises(ModelError):
            check_model_file(path)


def test_a_model_may_be_reached_through_a_link_of_the_user(tmp_path: Path) -> None:
    real = tmp_path / "real.onnx"
    real.write_bytes(b"x")
    (tmp_path / "link.onnx").symlink_to(real)
    assert check_model_file(tmp_path / "link.onnx") == real.resolve()
