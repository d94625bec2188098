"""Run constant shell scripts on a board: arguments are positional parameters, never text of it."""

import re
from collections.abc import Sequence

from edgeopt.board import Board
from edgeopt.errors import DeployFailed

#: Seconds: enough for any script that neither hashes nor copies, on a board under emulation.
QUICK = 120.0
#: Bytes per second: the slowest link that is still served.
SLOWEST_LINK = 64e3

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_PROLOGUE = """set -eu
umask 077
LC_ALL=C; export LC_ALL
fail() { echo "$1" >&2; exit 1; }
size() { stat -c %s "$1" 2>/dev/null || wc -c < "$1"; }
# With names, sync flushes just those; a sync that knows no names flushes everything.
flush() { sync "$@" 2>/dev/null || sync; }
"""


def printable(text: bytes, limit: int = 2000) -> str:
    """Return the end of what a board printed, without control characters."""
    return _CONTROL.sub("", text[-limit:].decode("utf-8", "replace")).strip()


def script_argv(script: str, arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the argument list that runs a constant script with positional parameters."""
    return ("sh", "-c", _PROLOGUE + script, "sh", *arguments)


def run_script(
    board: Board, script: str, arguments: Sequence[str], *, doing: str, timeout: float = QUICK
) -> list[str]:
    """Run a constant script and return the lines it printed.

    `doing` completes the sentence "could not ..." of the DeployFailed of a non-zero status.
    """
    done = board.run(script_argv(script, arguments), timeout=timeout)
    if done.status != 0:
        raise DeployFailed(
            f"could not {doing} on {board.name}",
            why=f"status {done.status}: {printable(done.stderr) or 'no message'}",
        )
    return done.stdout.decode("utf-8", "replace").splitlines()
