"""A board whose commands run only while a lease is ours: a stale holder can change nothing."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, final, runtime_checkable

from edgeopt.board import Board, Completed, Kind
from edgeopt.board.lease_script import BUSY, CONFIRM, FENCED, call_lease, lease_argv
from edgeopt.board.owner import describe_owner
from edgeopt.errors import BoardUnreachable, LeaseLost


@runtime_checkable
class Resending(Protocol):
    """A board that opens a lost connection again, and sends once more what that interrupted."""

    #: Called in between; what it raises ends the call.
    before_resend: Callable[[], None] | None


@final
class FencedBoard:
    """The board of a lease. Each command asks, in the same shell, whether the lease is still ours.

    Each makes the lease last `seconds` from its start, and longer while it runs and we live. A
    lease that was lost is a LeaseLost, whatever else went wrong. close() does nothing: the board
    is whose who took the lease.
    """

    def __init__(
        self, board: Board, root: PurePosixPath, *, token: str, seconds: float, timeout: float
    ) -> None:
        self._board = board
        self._root = root
        self._token = token
        self._seconds = seconds
        self._timeout = timeout
        if isinstance(board, Resending):
            board.before_resend = self._before_resend

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self._board.name

    @property
    def kind(self) -> Kind:
        """The kind of every figure measured here."""
        return self._board.kind

    def confirm(self, seconds: float = 0.0) -> None:
        """Raise LeaseLost when it was lost; else let it last at least so many seconds more."""
        done = call_lease(
            self._board, CONFIRM, self._root, self._token, _whole(seconds), timeout=self._timeout
        )
        if done.status == BUSY:
            raise self._lost(done.stdout)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        """Run one program to its end, if the lease is ours."""
        words = lease_argv(FENCED, self._root, self._token, _whole(self._seconds), *argv)
        with self._kept():
            done = self._board.run(words, stdin=stdin, timeout=timeout)
        refused = done.status == BUSY and self._token.encode() in done.stderr.split()
        if refused:
            raise self._lost(done.stdout)
        return Completed(tuple(argv), done.status, done.stdout, done.stderr, done.truncated)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        """Write a file there, if the lease is ours."""
        self.confirm(self._seconds)
        with self._kept():
            self._board.put(local, remote, offset=offset, timeout=timeout)

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        """Read a file from there, which needs no lease."""
        with self._kept():
            self._board.get(remote, local, limit=limit, timeout=timeout)

    def close(self) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Let the board itself be used without the lease again."""
        if isinstance(self._board, Resending):
            self._board.before_resend = None

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Renew the lease while one call takes longer than half of it; seldom, for it disturbs."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self._seconds / 2):
                # What is wrong the call itself finds out.
                with contextlib.suppress(BoardUnreachable, LeaseLost):
                    self.confirm(self._seconds)

        threading.Thread(target=beat, name="edgeopt-lease", daemon=True).start()
        try:
            yield
        except BoardUnreachable as error:
            raise self._why_gone(error) from error
        finally:
            over.set()

    def _before_resend(self) -> None:
        self.confirm()

    def _why_gone(self, error: BoardUnreachable) -> Exception:
        """Return what a lost connection was about: who takes a lease over cuts it."""
        try:
            self.confirm()
        except LeaseLost as lost:
            return lost
        except BoardUnreachable:
            return error
        return error

    def _lost(self, answer: bytes) -> LeaseLost:
        owner = describe_owner(answer)
        return LeaseLost(
            f"{self._board.name}: the lease was lost",
            why=f"now it is held by {owner.who}"
            if owner.held
            else "it expired, the board restarted, or somebody ended it",
            fix="run it again: what is on the board is whole, and nothing was written since",
        )


def _whole(seconds: float) -> str:
    return str(round(seconds))
