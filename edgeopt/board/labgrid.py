"""A board that labgrid looks after: its place is ours while we use it, and labgrid has its power.

labgrid's places are locked without a limit of time, so that a lease on the board is still taken.
Its own client is called (labgrid-client(1)): what it imports is none of our dependencies.
"""

import contextlib
import subprocess
from collections.abc import Iterator

from edgeopt.errors import BoardBusy, ConfigError

_CLIENT = "labgrid-client"
#: Seconds for the coordinator to answer.
_PATIENCE = 60.0


def cycle_command(place: str) -> tuple[str, ...]:
    """Return the command that cycles the power of a place that is ours."""
    return (*_client(place), "power", "cycle")


@contextlib.contextmanager
def hold_place(place: str) -> Iterator[None]:
    """Acquire a place while the body runs; BoardBusy with what labgrid says of who has it."""
    done = _call(place, "acquire")
    if done.returncode != 0:
        raise BoardBusy(
            f"the place {place!r} of labgrid cannot be acquired",
            why=done.stdout.strip()[-500:] or f"status {done.returncode}",
            fix=f"wait for it; what a run that was killed has left: {_CLIENT} -p {place} release",
        )
    try:
        yield
    finally:
        _call(place, "release")


def _client(place: str) -> tuple[str, ...]:
    return (_CLIENT, "-p", place)


def _call(place: str, verb: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            [*_client(place), verb],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"the place {place!r} needs labgrid's client",
            why=f"{_CLIENT} is not on this machine",
            fix="pip install 'edgeopt[labgrid]'",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BoardBusy(
            f"labgrid does not answer about the place {place!r}",
            why=f"{_CLIENT} {verb} took more than {_PATIENCE:.0f} s",
            fix="see that LG_COORDINATOR names the coordinator, and that it runs",
        ) from error
