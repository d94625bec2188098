"""One session at a time on a board: a lease that its holder cannot leave behind for ever.

It is one file under the deploy folder, made by link(2), which fails when the name exists: its
content is there from the first moment. It counts in the board's own uptime, so no clock has to be
right, and a reboot ends it. Nothing beats on the board while it is held, for that would disturb
what is measured there: each command extends it (a long one is told of every half of the lease),
and the end of the holder's connection shows that the holder is gone. Who takes a lease over ends
what the holder before left running there, and has a higher number (fence); a holder that lost it
can run and write nothing more.
"""

import contextlib
import random
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgeopt.board import Board, Completed
from edgeopt.board.fence import FencedBoard
from edgeopt.board.lease_script import BUSY, RELEASE, TAKE, WHO, call_lease
from edgeopt.board.owner import Owner, describe_ourselves, describe_owner, read_number
from edgeopt.errors import BoardBusy, BoardUnreachable, visible

#: Seconds between two looks of one who waits: each costs the board a few milliseconds of a core.
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 10.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to change what is under root on a board, for a while."""

    #: Runs commands and writes files only while the lease is ours.
    board: FencedBoard
    root: PurePosixPath
    #: Unpredictable, and no other holder's: what every command compares before it runs.
    token: str
    #: Higher than that of every holder before on this board.
    fence: int

    def confirm(self) -> None:
        """Raise LeaseLost when the lease was lost: taken over, expired, or the board restarted."""
        self.board.confirm()

    def renew(self, seconds: float) -> None:
        """Let the lease last at least so many seconds from now, unless it was lost (LeaseLost)."""
        self.board.confirm(seconds)


@contextlib.contextmanager
def hold(
    board: Board,
    root: PurePosixPath,
    *,
    owner: str,
    seconds: float,
    wait: float = 0.0,
    waiting: Callable[[Owner], None] = lambda _owner: None,
    timeout: float = 60.0,
) -> Iterator[Lease]:
    """Hold the board's lease while the body runs; BoardBusy names who holds it otherwise.

    Who holds it already is waited for, for at most wait seconds; waiting is told the first holder.
    The lease ends by itself seconds after the last sign of us, by the board's uptime, 30 s after
    our connection is lost, or when the board restarts: then the next one to ask takes it over.
    root is made when it is missing.
    """
    token = secrets.token_hex(16)
    until = time.monotonic() + wait
    pause, told = _FIRST_PAUSE, False
    while True:
        done = _ask(board, root, token, owner=owner, seconds=seconds, timeout=timeout)
        if done.status != BUSY:
            break
        found, left = describe_owner(done.stdout), until - time.monotonic()
        if left <= 0:
            raise _busy(board, found, waited=wait)
        if not told:
            waiting(found)
            told = True
        time.sleep(min(left, pause * random.uniform(0.5, 1.0)))  # noqa: S311 (spreads those who wait)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
    fence = read_number(done.stdout.decode(errors="replace"))
    fenced = FencedBoard(board, root, token=token, seconds=seconds, timeout=timeout)
    try:
        yield Lease(board=fenced, root=root, token=token, fence=fence)
    finally:
        fenced.release()
        # A lease on a board that is gone ends by itself; what the body raised is the news.
        with contextlib.suppress(BoardUnreachable):
            call_lease(board, RELEASE, root, token, timeout=timeout)


def _ask(
    board: Board, root: PurePosixPath, token: str, *, owner: str, seconds: float, timeout: float
) -> Completed:
    """Ask for the lease; once more when it is held by a process of this machine that has ended."""
    line, dead = describe_ourselves(owner), ""
    for _ in range(2):
        arguments = (token, str(round(seconds)), dead)
        done = call_lease(board, TAKE, root, *arguments, stdin=line, timeout=timeout)
        found = describe_owner(done.stdout)
        if done.status != BUSY or not found.dead:
            break
        dead = found.token
    return done


def _busy(board: Board, owner: Owner, *, waited: float) -> BoardBusy:
    waiting = f", {waited:g} s were waited for it" if waited else ""
    name = {"this machine": "local"}.get(board.name, board.name.removeprefix("emulated "))
    return BoardBusy(
        f"{board.name}: the board is in use",
        why=f"{owner.who}; it ends in {owner.left_s} s at the latest{waiting}",
        fix="wait for it (--wait 10min); what is dead or in the way goes by: "
        f"edgeopt board kick {name}",
    )


@dataclass(frozen=True, slots=True)
class Process:
    """A command of a lease that runs on the board now."""

    pid: int
    #: Of the lease that it was started under.
    token: str
    command: str


@dataclass(frozen=True, slots=True)
class Tenancy:
    """Who holds a board, and what of ours runs there."""

    owner: Owner
    #: Of the latest holder.
    fence: int
    processes: tuple[Process, ...]


def read_tenancy(board: Board, root: PurePosixPath, *, timeout: float = 60.0) -> Tenancy:
    """Ask who holds a board; nothing is changed there."""
    done = call_lease(board, WHO, root, timeout=timeout)
    return parse_tenancy(done.stdout)


def parse_tenancy(answer: bytes) -> Tenancy:
    """Read what WHO printed: lines "holder ...", "fence N" and "process PID TOKEN COMMAND"."""
    owner, fence, processes = Owner(), 0, []
    for line in answer.splitlines():
        key, _, value = line.partition(b" ")
        words = visible(value.decode(errors="replace")).split(" ", 2)
        if key == b"holder":
            owner = describe_owner(value)
        elif key == b"fence" and words[0].isdecimal():
            fence = int(words[0])
        elif key == b"process" and len(words) == 3 and words[0].isdecimal():
            processes.append(Process(int(words[0]), words[1], words[2].strip()))
    return Tenancy(owner, max(fence, owner.fence), tuple(processes))


def kick_owner(
    board: Board, root: PurePosixPath, owner: Owner, *, by: str, timeout: float = 60.0
) -> int:
    """Take the lease from an owner, end its commands and its connection; return our fence.

    The board is free then. BoardBusy when another one holds it by now: that one was not meant.
    """
    token = secrets.token_hex(16)
    arguments = (token, "60", owner.token)
    line = describe_ourselves(by)
    done = call_lease(board, TAKE, root, *arguments, stdin=line, timeout=timeout)
    if done.status == BUSY:
        raise _busy(board, describe_owner(done.stdout), waited=0.0)
    call_lease(board, RELEASE, root, token, timeout=timeout)
    return read_number(done.stdout.decode(errors="replace"))
