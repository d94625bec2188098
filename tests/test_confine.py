"""The least memory is bisected, and nothing is claimed where no limit is enforced."""

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.board.canary import try_memory_limit
from edgeopt.board.local import LocalBoard
from edgeopt.confine import confine_release, find_smallest
from edgeopt.deploy import stage_bundle
from edgeopt.errors import BoardIncompatible
from tests.deploy.kit import APP, board_facts, make_bundle, samples_of


@given(st.integers(1, 10**9), st.integers(10**6, 10**9))
def test_what_is_found_passes_and_what_is_a_little_less_does_not(need: int, enough: int) -> None:
    smallest, tries = find_smallest(lambda limit: limit >= need, enough)
    if smallest is None:
        assert need > enough - 4096
        return
    assert smallest >= need
    assert smallest - need <= max(1 << 18, 0.02 * smallest)
    assert smallest % 4096 == 0
    assert tries <= 14


def test_a_board_whose_kernel_enforces_nothing_is_told_and_not_believed(tmp_path: Path) -> None:
    board = LocalBoard(home=tmp_path)
    if try_memory_limit(board) == "enforced":
        pytest.skip("this machine enforces limits; a board that does is tested under tests/hil")
    bundle = make_bundle(tmp_path / "a")
    root = PurePosixPath(tmp_path / "board")
    release = stage_bundle(bundle, board, facts=board_facts(), app=APP, root=root)
    with pytest.raises(BoardIncompatible, match="no memory limit can be proved"):
        confine_release(
            release,
            bundle,
            board,
            feeds={"x": samples_of(1)},
            threads=1,
            peak=10**7,
            directory=tmp_path,
        )
