"""A changed file is put together on the board from what is there; only the rest is sent."""

from pathlib import Path, PurePosixPath

import pytest

from edgeopt.artifact import Bundle
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import rollback_release
from edgeopt.errors import BoardUnreachable
from tests.deploy.kit import (
    APP,
    DyingBoard,
    assert_whole,
    copy_tree,
    deploy,
    layers,
    leftovers,
    link_of,
    make_bundle,
    objects_of,
)

LAYER = 500_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "board"


@pytest.fixture
def old(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "old", weights=layers())


@pytest.fixture
def new(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "new", weights=layers(layer_1=99))


def names_of(*bundles: Bundle) -> set[str]:
    """Objects, and the lists of the chunks of those that are large."""
    listed = {f"{f.sha256}.chunks" for each in bundles for f in each.files if f.size >= 1 << 18}
    return objects_of(*bundles) | listed


def assert_done(root: Path, old: Bundle, new: Bundle) -> None:
    assert link_of(root) == new.digest
    assert_whole(root, new.digest)
    assert_whole(root, old.digest)
    assert leftovers(root) == []
    assert {path.name for path in (root / "objects").iterdir()} == names_of(old, new)


def test_one_changed_layer_is_sent_and_the_rest_copied_there(
    tmp_path: Path, root: Path, old: Bundle, new: Bundle
) -> None:
    first = deploy(old, LocalBoard(), root, tmp_path / "w")
    assert first.sent > 4 * LAYER
    second = deploy(new, LocalBoard(), root, tmp_path / "w")
    assert LAYER < second.sent < 1.3 * LAYER
    assert_done(root, old, new)


def test_layers_that_moved_are_found_where_they_were(
    tmp_path: Path, root: Path, old: Bundle
) -> None:
    deploy(old, LocalBoard(), root, tmp_path / "w")
    moved = make_bundle(tmp_path / "moved", weights=b"in front" + layers()[LAYER:])
    assert deploy(moved, LocalBoard(), root, tmp_path / "w").sent < 200_000
    assert_done(root, old, moved)


def test_a_damaged_object_is_not_copied_from(
    tmp_path: Path, root: Path, old: Bundle, new: Bundle
) -> None:
    deploy(old, LocalBoard(), root, tmp_path / "w")
    weights = root / "apps" / APP / "releases" / old.digest / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[1_800_000] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(content)
    assert deploy(new, LocalBoard(), root, tmp_path / "w").sent > 4 * LAYER
    assert_whole(root, new.digest)


def test_a_list_of_chunks_that_lies_costs_bytes_and_nothing_else(
    tmp_path: Path, root: Path, old: Bundle, new: Bundle
) -> None:
    deploy(old, LocalBoard(), root, tmp_path / "w")
    listed = next((root / "objects").glob("*.chunks"))
    lines = listed.read_text().splitlines()
    # Every chunk begins one byte late, where the list is believed.
    lines[0] = f"{lines[0].split()[0]} {int(lines[0].split()[1]) + 1}"
    listed.write_text("\n".join(lines) + "\n")
    assert deploy(new, LocalBoard(), root, tmp_path / "w").sent > 4 * LAYER
    assert_whole(root, new.digest)
    assert leftovers(root) == []


def test_an_object_that_vanishes_while_it_is_copied_from_is_sent(
    tmp_path: Path, root: Path, old: Bundle, new: Bundle
) -> None:
    deploy(old, LocalBoard(), root, tmp_path / "w")
    weights = next(each.sha256 for each in old.files if each.name == "weights.bin")

    def remove(content: bytes) -> bytes:
        (root / "objects" / weights).unlink(missing_ok=True)
        return content

    deploy(new, DyingBoard(LocalBoard(), spoil=remove), root, tmp_path / "w")
    assert_whole(root, new.digest)


@pytest.mark.parametrize("moment", ["before", "after", "half"])
def test_a_board_lost_at_any_call_of_a_delta_converges(
    tmp_path: Path, root: Path, old: Bundle, new: Bundle, moment: str
) -> None:
    deploy(old, LocalBoard(), tmp_path / "template", tmp_path / "w")
    for number in range(100):
        target = copy_tree(tmp_path / "template", root.with_name(f"board-{number}"))
        board = DyingBoard(LocalBoard(), at=number, moment=moment)
        try:
            deploy(new, board, target, tmp_path / "w")
        except BoardUnreachable:
            assert link_of(target) in {old.digest, new.digest}
            assert_whole(target, link_of(target))
            deploy(new, LocalBoard(), target, tmp_path / "w")
            assert_done(target, old, new)
        if number >= len(board.calls):
            break
    assert 12 < number < 99


def test_an_interrupted_delta_is_resumed(
    tmp_path: Path, root: Path, old: Bundle, new: Bundle
) -> None:
    deploy(old, LocalBoard(), tmp_path / "rehearsal", tmp_path / "w")
    rehearsal = DyingBoard(LocalBoard())
    deploy(new, rehearsal, tmp_path / "rehearsal", tmp_path / "w")
    # Of the puts, the inputs of smoke run and health check come last, and before them the delta.
    puts = [number for number, call in enumerate(rehearsal.calls) if call == "put"]
    deploy(old, LocalBoard(), root, tmp_path / "w")
    with pytest.raises(BoardUnreachable):
        deploy(new, DyingBoard(LocalBoard(), at=puts[-3], moment="half"), root, tmp_path / "w")
    there = sum(path.stat().st_size for path in root.glob("objects/*.part"))
    assert there > LAYER / 3
    assert deploy(new, LocalBoard(), root, tmp_path / "w").sent < 0.8 * LAYER
    assert_done(root, old, new)


def test_garbage_collection_keeps_what_current_and_previous_consist_of(
    tmp_path: Path, root: Path, old: Bundle, new: Bundle
) -> None:
    third = make_bundle(tmp_path / "third", weights=layers(layer_2=77))
    for each in (old, new, third):
        deploy(each, LocalBoard(), root, tmp_path / "w")
    assert_done(root, new, third)
    rollback_release(LocalBoard(), APP, root=PurePosixPath(root))
    assert deploy(old, LocalBoard(), root, tmp_path / "w").sent < 1.3 * LAYER
    assert_done(root, new, old)
