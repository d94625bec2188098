"""A share of the fuzzing that make fuzz does, and proof that it sees what it looks for."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import BoardBusy, ConfigError
from tests.fuzz import SUBJECTS, Subject, run_subject

pytestmark = pytest.mark.host


@pytest.mark.parametrize("name", SUBJECTS)
def test_damaged_input_is_read_or_refused_and_never_a_crash_or_a_hang(name: str) -> None:
    cases = max(2, SUBJECTS[name].cases // 20)
    tally = run_subject(name, SUBJECTS[name], cases=cases, seed=1)
    assert (tally.crashes, tally.hangs) == ([], [])
    assert tally.cases == cases


#: What shows that a seed was read where nothing is refused, or where all of it is.
READ: dict[str, Callable[[Any], bool]] = {
    "last report": lambda app: app == "questions",
    "plan": lambda plan: plan.name == "mixed",
    "lease": lambda error: "edgeopt deploy x by pi@lab" in error.why,
    "facts": lambda facts: facts.machine == "aarch64",
    "status": lambda found: found[0].state == "switching" and len(found[1]) == 1,
    "chunks": lambda chunks: len(chunks) == 6,
    "known hosts": lambda keys: len(keys) == 2,
    "tiles": lambda tiles: len(tiles.tiles) == 1,
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_what_is_mutated_is_whole_before(name: str, tmp_path: Path) -> None:
    """Where a seed is refused already, its mutations would try nothing behind that."""
    subject = SUBJECTS[name]
    for number, seed in enumerate(subject.seeds(tmp_path)):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            found = subject.parse(seed, folder)
        except BoardBusy as error:
            found = error
        assert READ.get(name, lambda _: True)(found), found


def test_five_thousand_cases_are_fed_by_make_fuzz() -> None:
    assert sum(each.cases for each in SUBJECTS.values()) >= 6000
    assert SUBJECTS["onnx"].cases == 1000


def fails(data: bytes, _folder: Path) -> None:
    """Crash, hang, refuse or read, by the first byte."""
    if data[:1] < b"\x40":
        raise KeyError(data)
    if data[:1] < b"\x50":
        time.sleep(10)
    if data[:1] < b"\x80":
        raise ConfigError("no")


def test_a_crash_and_a_hang_would_be_seen() -> None:
    seeds = [bytes([each]) * 9 for each in (0x10, 0x45, 0x60, 0x90)]
    subject = Subject(lambda _folder: seeds, fails, 0, patience=0.05)
    tally = run_subject("x", subject, cases=80, seed=0)
    assert tally.crashes
    assert "KeyError" in tally.crashes[0]
    assert tally.hangs
    assert min(tally.taken, tally.refused) > 0
    assert tally.cases == 80


def dies(_data: bytes, _folder: Path) -> None:
    import os

    os.abort()


def test_a_parser_that_kills_its_process_is_a_crash() -> None:
    tally = run_subject("x", Subject(lambda _folder: [b"x"], dies, 0), cases=3, seed=0)
    assert tally.crashes == ["x: its process ended with -6"]
