"""How the device program ended, when not well: whose fault that is, and what mends it."""

from typing import NoReturn

from pydantic import ValidationError

from edgeopt.artifact import Bundle, Fact
from edgeopt.board import TIMED_OUT, Completed
from edgeopt.board.script import printable
from edgeopt.board.state import BoardState
from edgeopt.errors import BoardIncompatible, BudgetExceeded, DeployFailed
from edgeopt.units import format_bytes

_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV"}


class ErrorLine(Fact):
    """The line that the device program prints on stderr when it fails."""

    error: str


def raise_failure(
    done: Completed, bundle: Bundle, before: BoardState, after: BoardState
) -> NoReturn:
    """Raise what the program's end means; the board's state is that around the run.

    BoardIncompatible for SIGILL, BudgetExceeded where the kernel killed it for want of memory,
    DeployFailed for all else.
    """
    if done.status == 128 + 4:
        raise BoardIncompatible(
            "the board's processor met an instruction that it does not have (SIGILL)",
            why=f"the code needs {', '.join(bundle.features) or bundle.machine}",
            fix="choose a target for this board (see 'edgeopt targets probe')",
        )
    if done.status == 128 + 9:
        _raise_kill(bundle, before, after)
    if done.status == TIMED_OUT:
        raise DeployFailed("the device program did not end in time", fix="ask fewer iterations")
    name = _SIGNALS.get(done.status - 128)
    ending = f"it died of {name}" if name else f"status {done.status}"
    raise DeployFailed(
        "the device program failed", why=f"{ending}: {_error_text(done.stderr) or 'no message'}"
    )


def _raise_kill(bundle: Bundle, before: BoardState, after: BoardState) -> NoReturn:
    """Tell the kernel's kill for want of memory, which it counts, from anybody else's."""
    counted = before.oom_kills is not None and after.oom_kills is not None
    if counted and after.oom_kills == before.oom_kills:
        raise DeployFailed(
            "another program killed the device program (SIGKILL)",
            why="the kernel did not: it has counted no process that it killed for want of memory",
            fix="see what on the board ends programs (a limit on the account, a watchdog), and "
            "run the same command again",
        )
    peak = f"predicted peak {format_bytes(bundle.footprint.peak)}"
    free = f", {format_bytes(before.available)} were available" if before.available else ""
    by = ", and the kernel killed it" if counted else "; this kernel does not count what it kills"
    raise BudgetExceeded(
        "the device program was killed: out of memory",
        why=peak + free + by,
        fix="stop other programs on the board, or choose a smaller profile",
    )


def _error_text(stderr: bytes) -> str:
    """Return the program's own message when its last line is {"error": "..."}."""
    text = printable(stderr)
    try:
        return ErrorLine.model_validate_json(text.splitlines()[-1] if text else "").error
    except ValidationError:
        return text
