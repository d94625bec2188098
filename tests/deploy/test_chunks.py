from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.deploy.chunks import Chunk, cut_file, parse_list, plan_pieces, write_list

NOISE = np.random.default_rng(0).bytes(3_000_000)


def cut(tmp_path: Path, content: bytes) -> tuple[Chunk, ...]:
    (tmp_path / "file").write_bytes(content)
    return cut_file(tmp_path / "file")


def test_chunks_cover_the_file_within_their_bounds(tmp_path: Path) -> None:
    chunks = cut(tmp_path, NOISE)
    assert chunks[0].offset == 0
    assert all(one.offset + one.size == two.offset for one, two in pairwise(chunks))
    assert chunks[-1].offset + chunks[-1].size == len(NOISE)
    assert all(4096 <= each.size <= 65536 for each in chunks[:-1])
    assert 10_000 < len(NOISE) / len(chunks) < 30_000


def test_a_file_of_one_value_and_an_empty_one_have_chunks_too(tmp_path: Path) -> None:
    assert sum(each.size for each in cut(tmp_path, bytes(300_000))) == 300_000
    assert cut(tmp_path, b"") == ()


def test_bytes_put_in_move_the_boundaries_near_them_and_no_others(tmp_path: Path) -> None:
    before = {each.name for each in cut(tmp_path, NOISE)}
    after = cut(tmp_path, NOISE[:1_234_567] + b"something new" + NOISE[1_234_567:])
    assert sum(each.name not in before for each in after) <= 2


def test_a_boundary_does_not_depend_on_where_reading_stops(tmp_path: Path) -> None:
    """The hash's window reaches back over the block's edge."""
    whole = {each.name for each in cut(tmp_path, NOISE)}
    shifted = {each.name for each in cut(tmp_path, NOISE[500_000:])}
    assert len(shifted - whole) <= 1


def test_a_changed_layer_is_all_that_is_sent(tmp_path: Path) -> None:
    old = cut(tmp_path, NOISE)
    new = cut(tmp_path, NOISE[:1_000_000] + bytes(200_000) + NOISE[1_200_000:])
    recipe = plan_pieces(new, {"a" * 64: old})
    assert recipe is not None
    assert 200_000 <= sum(end - begin for begin, end in recipe.sent) < 320_000
    assert sum(each.size for each in recipe.pieces) == len(NOISE)
    assert len(recipe.pieces) <= 5


def test_a_file_with_little_in_common_is_sent_whole(tmp_path: Path) -> None:
    chunks = cut(tmp_path, NOISE)
    assert plan_pieces(chunks, {}) is None
    assert plan_pieces(chunks, {"a" * 64: chunks[:3]}) is None
    assert plan_pieces((), {"a" * 64: chunks}) is None


def test_a_list_comes_back_as_it_was_written(tmp_path: Path) -> None:
    chunks = cut(tmp_path, NOISE)
    assert parse_list(write_list(chunks).splitlines()) == chunks


@given(st.lists(st.text(max_size=40) | st.just("0123456789abcdef 5"), max_size=20))
def test_of_a_list_that_a_board_tells_only_what_is_one_is_believed(lines: list[str]) -> None:
    chunks = parse_list(lines)
    assert [f"{each.name} {each.size}" for each in chunks] == lines[: len(chunks)]
    assert [each.offset for each in chunks] == [
        sum(one.size for one in chunks[:number]) for number in range(len(chunks))
    ]
