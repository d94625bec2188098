from pathlib import Path, PurePosixPath

import pytest

from edgeopt.artifact import Bundle
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import stage_bundle
from edgeopt.errors import BoardUnreachable, DeployFailed
from tests.deploy.kit import APP, DyingBoard, assert_whole, board_facts, leftovers, make_bundle

SIZE = 200_000


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "a", size=SIZE)


def stage(bundle: Bundle, board: DyingBoard | LocalBoard, root: Path) -> int:
    return stage_bundle(bundle, board, facts=board_facts(), app=APP, root=PurePosixPath(root)).sent


def weights_part(bundle: Bundle, root: Path) -> Path:
    weights = next(each for each in bundle.files if each.name == "weights.bin")
    return root / "objects" / f"{weights.sha256}.part"


def cut_off(bundle: Bundle, root: Path) -> Path:
    """Lose the board half-way through the weights, the last file; return what arrived."""
    board = DyingBoard(LocalBoard(), at=-1)
    stage(bundle, board, root.with_name("rehearsal"))
    last = max(index for index, call in enumerate(board.calls) if call == "put")
    with pytest.raises(BoardUnreachable):
        stage(bundle, DyingBoard(LocalBoard(), at=last, moment="half"), root)
    return weights_part(bundle, root)


def test_an_interrupted_upload_is_resumed_where_it_stopped(tmp_path: Path, bundle: Bundle) -> None:
    root = tmp_path / "board"
    part = cut_off(bundle, root)
    there = part.stat().st_size
    whole = (bundle.path / "weights.bin").stat().st_size
    assert 0 < there < whole
    assert stage(bundle, LocalBoard(), root) == whole - there
    assert_whole(root, bundle.digest)
    # It is complete, and nobody has tried it.
    assert leftovers(root) == [f"apps/{APP}/state"]


def test_a_damaged_beginning_is_not_resumed(tmp_path: Path, bundle: Bundle) -> None:
    root = tmp_path / "board"
    part = cut_off(bundle, root)
    content = part.read_bytes()
    part.write_bytes(b"?" + content[1:])
    assert stage(bundle, LocalBoard(), root) == (bundle.path / "weights.bin").stat().st_size
    assert_whole(root, bundle.digest)


@pytest.mark.parametrize("extra", [0, 1, 4096])
def test_a_wrong_upload_of_full_size_or_more_is_replaced(
    tmp_path: Path, bundle: Bundle, extra: int
) -> None:
    root = tmp_path / "board"
    part = cut_off(bundle, root)
    whole = (bundle.path / "weights.bin").stat().st_size
    part.write_bytes(bytes(whole + extra))
    assert stage(bundle, LocalBoard(), root) == whole
    assert_whole(root, bundle.digest)


def test_a_complete_but_unsealed_upload_is_not_sent_again(tmp_path: Path, bundle: Bundle) -> None:
    root = tmp_path / "board"
    part = cut_off(bundle, root)
    part.write_bytes((bundle.path / "weights.bin").read_bytes())
    assert stage(bundle, LocalBoard(), root) == 0
    assert_whole(root, bundle.digest)


def test_another_bundles_interrupted_upload_is_removed(tmp_path: Path, bundle: Bundle) -> None:
    root = tmp_path / "board"
    part = cut_off(bundle, root)
    other = make_bundle(tmp_path / "b", seed=1)
    stage(other, LocalBoard(), root)
    assert not part.exists()
    # It is complete, and nobody has tried it.
    assert leftovers(root) == [f"apps/{APP}/state"]


def test_a_write_that_is_cut_short_in_silence_is_noticed(tmp_path: Path, bundle: Bundle) -> None:
    """What an SFTP client that ignores write replies does on a full disk."""
    root = tmp_path / "board"
    board = DyingBoard(LocalBoard(), spoil=lambda content: content[: len(content) // 2])
    with pytest.raises(DeployFailed, match="is the disk full"):
        stage(bundle, board, root)
    assert list(root.glob("objects/*")) == []
    assert not (root / "apps" / APP / "releases" / bundle.digest).exists()


def test_objects_are_read_only(tmp_path: Path, bundle: Bundle) -> None:
    root = tmp_path / "board"
    stage(bundle, LocalBoard(), root)
    modes = {path.stat().st_mode & 0o777 for path in (root / "objects").iterdir()}
    assert modes == {0o400, 0o500}
