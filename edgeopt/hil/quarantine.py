"""Tests that are known to fail for a while: each with a reason, and a day on which it ends."""

import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from edgeopt.catalog import decode


class Entry(BaseModel):
    """One test, or one file of tests, that is skipped until a day."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: As pytest prints it: "tests/test_x.py::test_y"; it covers all of its parameters.
    test: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    #: The last day; from the next one on the test fails with this reminder.
    expires: datetime.date

    def covers(self, nodeid: str) -> bool:
        """Whether a test is the one that was named, or one of its parameters or members.

        >>> day = datetime.date(2030, 1, 1)
        >>> Entry(test="t.py::test_a", reason="r", expires=day).covers("t.py::test_a[1]")
        True
        >>> Entry(test="t.py::test_a", reason="r", expires=day).covers("t.py::test_ab")
        False
        """
        rest = nodeid.removeprefix(self.test)
        return rest != nodeid and (not rest or rest[0] in "[:/")

    def expired(self, today: datetime.date) -> bool:
        """Whether its last day is over."""
        return today > self.expires


class Quarantine(BaseModel):
    """The quarantine file: [[quarantine]] tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quarantine: tuple[Entry, ...] = ()

    def find(self, nodeid: str) -> Entry | None:
        """Return the first entry that covers a test."""
        return next((each for each in self.quarantine if each.covers(nodeid)), None)


def read_quarantine(path: Path) -> Quarantine:
    """Read the file, which need not be there; raises ConfigError with file and line."""
    return decode(path, Quarantine) if path.exists() else Quarantine()
