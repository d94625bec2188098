"""This machine as a board."""

from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board import Board
from edgeopt.board.local import LocalBoard
from tests.board.contract import BoardContract


class TestLocalBoard(BoardContract):
    """Every promise of a board, kept by this machine."""

    @pytest.fixture
    def board(self, tmp_path_factory: pytest.TempPathFactory) -> Board:
        return LocalBoard(home=tmp_path_factory.mktemp("home"))

    def test_its_figures_are_native(self, board: Board) -> None:
        assert (board.name, board.kind) == ("this machine", "native")


def test_home_is_the_users_own_unless_another_is_given(tmp_path: Path) -> None:
    assert LocalBoard().run(["pwd", "-P"], timeout=10).stdout.decode().strip() == str(
        Path.home().resolve()
    )
    (tmp_path / "file").write_text("here")
    LocalBoard(home=tmp_path).get(PurePosixPath("file"), tmp_path / "b", limit=9, timeout=9)
    assert (tmp_path / "b").read_text() == "here"
