"""The ladder for a board that does not answer: each step, in its order, and none too many."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board import Board, Completed, Kind
from edgeopt.board.lease import hold
from edgeopt.board.local import LocalBoard
from edgeopt.board.recover import recover_board
from edgeopt.errors import BoardUnreachable
from tests.board.contract import is_alive

ROOT = PurePosixPath("~/deploy")


class Wedged:
    """A board that lets us in and cannot start a program."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @property
    def name(self) -> str:
        return "wedged"

    @property
    def kind(self) -> Kind:
        return "board"

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        self.asked.append(argv[-1])
        return Completed(tuple(argv), 254, b"sh: Cannot fork\n", b"")

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        raise AssertionError

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


def power_command(tmp_path: Path, text: str) -> list[str]:
    script = tmp_path / "power.py"
    script.write_text(text)
    return [sys.executable, str(script)]


def test_a_board_that_answers_again_is_not_touched(tmp_path: Path) -> None:
    power = power_command(tmp_path, "raise SystemExit(1)")
    board = LocalBoard(home=tmp_path)
    with hold(board, ROOT, owner="x", seconds=100) as lease:
        assert recover_board(lambda: board, ROOT, power=power) == "it answers"
        lease.confirm()


def test_what_a_dead_holder_left_running_is_ended_and_a_living_ones_is_not(tmp_path: Path) -> None:
    board = LocalBoard(home=tmp_path)
    with hold(board, ROOT, owner="x", seconds=100) as lease:
        here = f"@{tmp_path}/deploy@"
        marks = {
            "stray": "0" * 32 + here,
            "ours": lease.token + here,
            "another board's": "1" * 32 + "@/another/deploy@",
        }
        running = {
            name: subprocess.Popen(["sleep", "960"], env={"EDGEOPT_LEASE": token})
            for name, token in marks.items()
        }
        try:
            assert "1 stray commands" in recover_board(lambda: board, ROOT)
            assert running["stray"].wait(10) == -9
            for name in ("ours", "another board's"):
                assert is_alive(board, str(running[name].pid))
        finally:
            for each in running.values():
                each.kill()
                each.wait()


def test_power_is_the_last_step_and_brings_back_what_it_can(tmp_path: Path) -> None:
    sign = tmp_path / "on"
    power = power_command(tmp_path, f"open({str(sign)!r}, 'w')")
    board = Wedged()

    def connect() -> Board:
        return LocalBoard(home=tmp_path) if sign.exists() else board

    assert recover_board(connect, ROOT, power=power) == "its power was cycled"
    assert board.asked[0] == "/proc/sys/kernel/random/boot_id"
    assert "reboot" in board.asked[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("print('no such port'); raise SystemExit(3)", "ended with 3: no such port"),
        ("pass", "no route"),
    ],
)
def test_a_board_that_nothing_brings_back_is_broken_and_all_that_was_tried_is_told(
    tmp_path: Path, text: str, said: str
) -> None:
    def connect() -> Board:
        raise BoardUnreachable("no route")

    power = power_command(tmp_path, text)
    with pytest.raises(BoardUnreachable, match="the board is broken") as caught:
        recover_board(connect, ROOT, power=power, patience=0.1)
    assert said in caught.value.why
    assert caught.value.why.startswith("reconnect: no route; restart: no route; power: ")
    with pytest.raises(BoardUnreachable, match="the board is broken") as caught:
        recover_board(connect, ROOT, power=["/no/such/program"], patience=0.1)
    assert "No such file" in caught.value.why
    with pytest.raises(BoardUnreachable) as caught:
        recover_board(connect, ROOT)
    assert "[power]" in caught.value.fix
