"""What became of each board of a fleet, kept beside the fleet file so that a rerun goes on."""

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from edgeopt.artifact import Fact
from edgeopt.errors import ConfigError
from edgeopt.fleet.file import FleetBoard
from edgeopt.store import write_atomically

#: deployed: by this run. same: by an earlier run, the same release. failed: why says it.
#: not tried: the run stopped before.
Result = Literal["deployed", "same", "failed", "not tried"]
#: A state of ten thousand boards has three megabytes.
_LARGEST = 32_000_000


class Outcome(Fact):
    """What became of one board."""

    name: str
    address: str
    target: str
    canary: bool = False
    result: Result
    #: Of the release that it was to have; "" when that was never known.
    digest: str = ""
    #: The exit code that deploying to this board alone would have had.
    code: int = 0
    why: str = ""
    fix: str = ""
    seconds: float = 0.0
    #: Bytes that went over the wire.
    sent: int = 0
    #: Number of the lease on that board.
    fence: int = 0
    time: datetime.datetime

    @property
    def good(self) -> bool:
        """Whether the board has the release."""
        return self.result in ("deployed", "same")


class State(Fact):
    """The latest outcome of every board that was tried, for one application."""

    schema_version: Literal[1] = 1
    app: str
    outcomes: tuple[Outcome, ...] = Field(default=(), max_length=100_000)


@dataclass(slots=True)
class StateFile:
    """The state of a fleet on disk, whole after every outcome."""

    path: Path
    app: str
    _found: dict[str, Outcome] = field(default_factory=dict)

    def load(self) -> None:
        """Read what earlier runs did; what they did for another application does not count."""
        mend = f"remove it, and every board is tried again: {self.path}"
        try:
            if self.path.stat().st_size > _LARGEST:
                raise ConfigError(f"{self.path} is too large to be a fleet's state", fix=mend)
            state = State.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "document"
            raise ConfigError(
                f"{self.path} is not a fleet's state", why=f"{place}: {first['msg']}", fix=mend
            ) from error
        if state.app == self.app:
            self._found = {each.name: each for each in state.outcomes}

    def has(self, board: FleetBoard, digest: str) -> bool:
        """Whether the board has the release by what is written here."""
        found = self._found.get(board.label)
        same = found is not None and (found.address, found.digest) == (board.address, digest)
        return same and found is not None and found.good

    def note(self, outcome: Outcome) -> None:
        """Write down what was done to a board; where nothing was done, nothing changes."""
        if outcome.result not in ("deployed", "failed"):
            return
        self._found[outcome.name] = outcome
        state = State(app=self.app, outcomes=tuple(self._found.values()))
        write_atomically(self.path, (state.model_dump_json(indent=1) + "\n").encode())
