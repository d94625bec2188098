"""The fleet file: which boards there are, and how carefully they are changed."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edgeopt.catalog import decode
from edgeopt.units import Fraction, Millis

#: A board's name in tables and in the state: printable, and no path.
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.:@\[\]-]{0,127}$"
_TARGET = r"^[A-Za-z0-9_][A-Za-z0-9_./-]{0,255}$"
#: More boards than that are several fleets.
_MOST = 10_000

_Name = Annotated[str, Field(pattern=_NAME)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FleetBoard(_Table):
    """One board of a fleet."""

    #: user@host[:port], or an alias of ~/.ssh/config.
    address: str = Field(min_length=1, max_length=300)
    #: What it is called in tables; its address where that is not given.
    name: _Name | None = None
    #: Its kind of device; the fleet's where that is not given.
    target: str | None = Field(default=None, pattern=_TARGET)
    #: Whether it is among the first of its target, which prove the release for all others.
    canary: bool = False

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.address


class Fleet(_Table):
    """Boards that get the same application."""

    target: str | None = Field(default=None, pattern=_TARGET)
    #: How many boards are changed at once, after the canaries.
    parallel: int = Field(default=8, ge=1, le=256)
    #: No further board is begun when failures show that more than this share of boards fails.
    stop_at: Fraction = 0.2
    #: How long a board that somebody else uses is waited for, in ms ("1min").
    wait: Millis = Field(default=60_000.0, le=86_400_000.0)
    #: How long a board that does not answer is waited for, in ms ("20s").
    patience: Millis = Field(default=20_000.0, ge=100.0, le=600_000.0)
    board: tuple[FleetBoard, ...] = Field(min_length=1, max_length=_MOST)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what in ("label", "address"):
            seen: set[str] = set()
            for each in self.board:
                value = getattr(each, what)
                if value in seen:
                    raise ValueError(f"board {value!r} is there twice")
                seen.add(value)
        for each in self.board:
            if each.address in ("local", "emulated"):
                raise ValueError(f"{each.address!r} is no board of a fleet: give SSH addresses")
            if each.target is None and self.target is None:
                raise ValueError(f"board {each.label!r} has no target, and the fleet has none")
        return self

    def groups(self) -> dict[str, tuple[FleetBoard, ...]]:
        """Return the boards of each target, in the file's order, canaries first.

        Where no board of a target is a canary, its first one is.
        """
        found: dict[str, list[FleetBoard]] = {}
        for each in self.board:
            found.setdefault(each.target or self.target or "", []).append(each)
        return {target: _canaries_first(boards) for target, boards in found.items()}


def _canaries_first(boards: list[FleetBoard]) -> tuple[FleetBoard, ...]:
    if not any(each.canary for each in boards):
        boards = [boards[0].model_copy(update={"canary": True}), *boards[1:]]
    return tuple(sorted(boards, key=lambda each: not each.canary))


def load_fleet(path: Path) -> Fleet:
    """Read a fleet file; raises ConfigError with file and line."""
    return decode(path, Fleet)
