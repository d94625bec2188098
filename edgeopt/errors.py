"""Every failure that edgeopt expects, as one tree with one exit code per branch.

    EdgeoptError
    ├── ConfigError            2   a file, an option or a missing extra
    │   └── HostTooSmall       2   this machine has too little memory for what was asked
    ├── ModelError             2   a model file that cannot be trusted or read
    ├── BudgetExceeded         3   the budget is not met, predicted or measured
    ├── AccuracyLost           4   the accuracy gate
    ├── ParityBroken           5   outputs on the board differ from onnxruntime's
    ├── BoardUnreachable       6   no network, no answer, no key, wrong key
    ├── BoardIncompatible      7   instruction set, C library, space, permissions
    ├── BoardBusy              8   somebody else holds the board
    ├── OperatorUnsupported    9   the compiler has no such operator
    ├── DeployFailed          10   failed, and the previous release still runs
    ├── RollbackFailed        11   failed, and the previous release could not be restored
    ├── MeasurementNoisy      12   the samples do not support a figure
    ├── FleetIncomplete      13   some boards of a fleet do not have the release
    └── Interrupted          130   Ctrl-C or SIGTERM

Anything else that escapes is a bug (exit code 1) and keeps its traceback.
"""

from typing import ClassVar


def visible(text: str) -> str:
    r"""Return text without what a terminal would obey, as models and boards may hold it.

    >>> visible("a board\x1b]0;title\x07 says\n  so")
    'a board]0;title says\n  so'
    """
    return "".join(each for each in text if each == "\n" or each.isprintable())


class EdgeoptError(Exception):
    """An expected failure in three sentences: what happened, why, and how to fix it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        # Names in a model and what a board answers may hold escape sequences of terminals.
        self.what, self.why, self.fix = visible(what), visible(why), visible(fix)
        super().__init__(self.what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class ConfigError(EdgeoptError):
    """A file, an option or an environment that cannot mean what was written."""

    exit_code = 2


class HostTooSmall(ConfigError):
    """This machine has too little memory free for what was asked."""


class ModelError(EdgeoptError):
    """A model that cannot be trusted, read or normalized."""

    exit_code = 2


class BudgetExceeded(EdgeoptError):
    """A limit of the budget is not met."""

    exit_code = 3


class AccuracyLost(EdgeoptError):
    """The deployed model loses more of its metric than the budget allows."""

    exit_code = 4


class ParityBroken(EdgeoptError):
    """Outputs on the board are not those of onnxruntime on the host."""

    exit_code = 5


class BoardUnreachable(EdgeoptError):
    """The board does not answer, or does not let us in, or is not who it was."""

    exit_code = 6


class BoardIncompatible(EdgeoptError):
    """The board cannot run what was compiled for it."""

    exit_code = 7


class BoardBusy(EdgeoptError):
    """Another session holds the board's lease."""

    exit_code = 8


class LeaseLost(BoardBusy):
    """The board's lease was ours and is not any more: nothing was written since."""


class OperatorUnsupported(EdgeoptError):
    """The model has operators that cannot be compiled."""

    exit_code = 9


class DeployFailed(EdgeoptError):
    """The release was not activated; the previous one is untouched or restored."""

    exit_code = 10


class RollbackFailed(EdgeoptError):
    """The previous release could not be restored."""

    exit_code = 11


class MeasurementNoisy(EdgeoptError):
    """The conditions of the measurement do not support a figure."""

    exit_code = 12


class FleetIncomplete(EdgeoptError):
    """Some boards of a fleet have failed, or were not tried; each has one release, whole."""

    exit_code = 13


class Interrupted(EdgeoptError):
    """The user stopped the run."""

    exit_code = 130


#: The gates of a report, by exit code: what a deployment was not kept for.
GATES: dict[int, type[EdgeoptError]] = {
    each.exit_code: each for each in (BudgetExceeded, AccuracyLost, ParityBroken, MeasurementNoisy)
}
