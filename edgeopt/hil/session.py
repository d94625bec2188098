"""The board of one run of the tests: found, connected, leased, and given back."""

import contextlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import final

from edgeopt.board import Board, Completed, Kind
from edgeopt.board.choose import Choice, choose_board
from edgeopt.board.facts import BoardFacts, read_facts
from edgeopt.board.labgrid import cycle_command, hold_place
from edgeopt.board.lease import Lease, hold
from edgeopt.board.recover import recover_board
from edgeopt.cli.places import cache_folder
from edgeopt.errors import BoardUnreachable, ConfigError
from edgeopt.pipeline import LEASE_SECONDS
from edgeopt.project import FILE, load_project
from edgeopt.target import Target, load_target, load_targets
from edgeopt.trial import ROOT


@dataclass(frozen=True, slots=True)
class Wanted:
    """What --board and its options say."""

    #: A target's name, an SSH destination, "local" or "emulated".
    board: str
    #: Kind of device behind a destination; None where the board's name tells.
    target: str | None
    #: Folder of edgeopt.toml, if there is one.
    project: Path
    ssh_config: Path | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The target that is tested, and where its board is: None is the target's usual one."""

    target: Target
    address: str | None


def find_board(wanted: Wanted) -> Found:
    """Understand what was asked for without asking any board; ConfigError says what is missing."""
    boards = load_project(wanted.project).boards if (wanted.project / FILE).is_file() else {}
    if wanted.target is not None:
        return Found(load_target(wanted.target, project=wanted.project), wanted.board)
    targets = load_targets(project=wanted.project)
    if wanted.board in targets:
        return Found(targets[wanted.board], boards.get(wanted.board))
    named = [name for name, address in boards.items() if address == wanted.board]
    if len(named) == 1:
        return Found(load_target(named[0], project=wanted.project), wanted.board)
    if wanted.board == "local":
        return Found(_own_target(targets), "local")
    raise ConfigError(
        f"--board {wanted.board}: which kind of device is it?",
        why="it is no target's name, and no target's board in edgeopt.toml",
        fix=f"add --board-target NAME, one of: {', '.join(targets)}",
    )


def _own_target(targets: dict[str, Target]) -> Target:
    """Return the target of this machine: the plainest one of its instruction set."""
    names = {"x86_64": "x86-64", "aarch64": "generic-aarch64", "armv7l": "generic-armv7"}
    name = names.get(platform.machine(), "")
    if name not in targets:
        raise ConfigError(
            "--board local: which kind of device is this machine?",
            why=f"there is no target for {platform.machine()}",
            fix="add --board-target NAME (edgeopt targets list)",
        )
    return targets[name]


@final
class LeasedBoard:
    """The board of the tests. close() does nothing: whoever leased it gives it back."""

    def __init__(self, board: Board, *, target: Target, facts: BoardFacts, lease: Lease) -> None:
        self._board = board
        self.target = target
        self.facts = facts
        #: For what is done under ROOT: renewed before each test.
        self.lease = lease

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self._board.name

    @property
    def kind(self) -> Kind:
        """The kind of every figure measured here."""
        return self._board.kind

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        """Run one program to its end, as Board.run does."""
        return self._board.run(argv, stdin=stdin, timeout=timeout)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        """Write a file there, as Board.put does."""
        self._board.put(local, remote, offset=offset, timeout=timeout)

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        """Read a file from there, as Board.get does."""
        self._board.get(remote, local, limit=limit, timeout=timeout)

    def close(self) -> None:
        """Do nothing: the session closes it."""


@final
class BoardSession:
    """One board for all tests of a run: opened by the first that needs it, leased until the end."""

    def __init__(self, wanted: Wanted, *, owner: str) -> None:
        self.wanted = wanted
        self.found = find_board(wanted)
        self._choice = _choose(self.found, wanted)
        file = wanted.project / FILE
        self._project = load_project(wanted.project) if file.is_file() else None
        places = self._project.labgrid if self._project else {}
        self._place = places.get(self.found.target.name, "")
        self._owner = owner
        self._stack = contextlib.ExitStack()
        self._board: LeasedBoard | None = None
        #: Why no further test may use it; empty while it may be.
        self.broken = ""

    @property
    def kind(self) -> Kind:
        """The kind of its figures, known before it is reached."""
        return self._choice.kind

    def board(self) -> LeasedBoard:
        """Return the board, ours for now; BoardUnreachable or BoardBusy when it cannot be."""
        if self._board is not None:
            self._board.lease.renew(LEASE_SECONDS)
            return self._board
        with contextlib.ExitStack() as stack:
            if self._place:
                stack.enter_context(hold_place(self._place))
            board = self._choice.connect()
            stack.callback(board.close)
            facts = read_facts(board)
            lease = stack.enter_context(hold(board, ROOT, owner=self._owner, seconds=LEASE_SECONDS))
            self._board = LeasedBoard(
                lease.board, target=self.found.target, facts=facts, lease=lease
            )
            self._stack = stack.pop_all()
        return self._board

    def recover(self) -> str:
        """Bring back a lost board, and return what it took; BoardUnreachable: nothing did."""
        name, place = self.found.target.name, self._place
        command = self._project.power.get(name, ()) if self._project else ()
        with contextlib.ExitStack() as stack:
            if place:
                stack.enter_context(hold_place(place))
                command = command or cycle_command(place)
            return recover_board(self._choice.connect, ROOT, power=command)

    def close(self) -> None:
        """Give the board back; the next call of board() opens it again."""
        self._board = None
        # A board that is gone has nothing to be given back.
        with contextlib.suppress(BoardUnreachable):
            self._stack.close()


def _choose(found: Found, wanted: Wanted) -> Choice:
    return choose_board(
        found.target, found.address, ssh_config=wanted.ssh_config, cache=cache_folder()
    )
