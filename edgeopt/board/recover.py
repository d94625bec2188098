"""Get a board back that does not answer: the least violent step first, each bounded."""

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import PurePosixPath

from edgeopt.board import Board
from edgeopt.board.lease_script import STRAYS, call_lease
from edgeopt.errors import BoardIncompatible, BoardUnreachable

#: Seconds for a command that does nothing, and for one that restarts the board or its power.
_PROMPT = 30.0
_POWER = 120.0
#: Seconds until a board that restarts does not answer any more.
_DOWN = 10.0
#: Seconds between two looks at a board that restarts.
_PAUSE = 2.0

_BOOT = ("cat", "/proc/sys/kernel/random/boot_id")
#: Accounts without the right get a refusal, and the next step is tried.
_REBOOT = "reboot 2>&1 || /sbin/reboot 2>&1 || systemctl reboot 2>&1"


def recover_board(
    connect: Callable[[], Board],
    root: PurePosixPath,
    *,
    power: Sequence[str] = (),
    patience: float = 180.0,
) -> str:
    """Bring a board back, and return what that took, in words.

    It is connected to again, and what dead holders of its lease left running is ended; a board
    that lets us in and runs nothing is restarted; else the power command of the project is run
    here, and the board is waited for, for patience seconds. Raises BoardUnreachable with all that
    was tried when nothing helps.
    """
    tried: list[str] = []
    for step in (_reconnect, _restart):
        try:
            return step(connect, root, patience)
        except BoardUnreachable as error:
            tried.append(f"{step.__name__.strip('_')}: {error.what}")
    if power:
        try:
            return _cycle(connect, power, patience)
        except BoardUnreachable as error:
            tried.append(f"power: {error.what}")
    raise BoardUnreachable(
        "the board is broken: nothing brings it back",
        why="; ".join(tried),
        fix="look at it, and see that its power and network are on"
        if power
        else 'let edgeopt.toml say how its power is cycled: [power] rpi4 = ["uhubctl", ...]',
    )


def _reconnect(connect: Callable[[], Board], root: PurePosixPath, _patience: float) -> str:
    board = connect()
    try:
        _ask_boot(board)
        ended = call_lease(board, STRAYS, root, timeout=_PROMPT).stdout.split()
    except BoardIncompatible as error:
        # It answers; that no lease can be kept there is for others to say.
        return f"it answers again ({error.what})"
    finally:
        board.close()
    return f"it answers again; {len(ended)} stray commands were ended" if ended else "it answers"


def _restart(connect: Callable[[], Board], _root: PurePosixPath, patience: float) -> str:
    board = connect()
    done = None
    # It is lost, as it must be, when the restart begins before the command has ended.
    with closing(board), suppress(BoardUnreachable):
        done = board.run(["sh", "-c", _REBOOT], timeout=_PROMPT)
    if done is not None and done.status != 0:
        said = done.stdout.decode(errors="replace").strip().splitlines()
        raise BoardUnreachable(f"it may not be restarted: {said[-1] if said else done.status}")
    time.sleep(_DOWN)
    _await(connect, patience)
    return "it was restarted"


def _cycle(connect: Callable[[], Board], power: Sequence[str], patience: float) -> str:
    try:
        done = subprocess.run(
            list(power),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_POWER,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BoardUnreachable(f"{power[0]}: {error}") from error
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip()[-300:]
        raise BoardUnreachable(f"{power[0]} ended with {done.returncode}: {said}")
    _await(connect, patience)
    return "its power was cycled"


def _await(connect: Callable[[], Board], patience: float) -> None:
    until = time.monotonic() + patience
    while True:
        try:
            board = connect()
            try:
                _ask_boot(board)
                return
            finally:
                board.close()
        except BoardUnreachable:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE)


def _ask_boot(board: Board) -> None:
    done = board.run(_BOOT, timeout=_PROMPT)
    if done.status != 0:
        raise BoardUnreachable(f"{board.name} runs nothing: status {done.status}")
