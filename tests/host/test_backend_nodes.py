"""The standard's own node cases, against the list of those that are refused.

One in four runs here, chosen by the hash of its name, which takes about 90 CPU seconds;
`python -m tests.host.backend_nodes` runs all, or any by a regular expression, and says why.
"""

import os
import zlib
from collections import Counter
from typing import Any

import pytest

from tests.host.backend_nodes import Group, Outcome, load_cases, read_groups, run_cases

pytestmark = pytest.mark.host

#: One case in so many runs.
_EVERY = 4
#: Share of the cases within edgeopt's reach that have to pass.
_PASSING = 0.85


@pytest.fixture(scope="module")
def groups() -> tuple[Group, ...]:
    return read_groups()


@pytest.fixture(scope="module")
def listed(groups: tuple[Group, ...]) -> frozenset[str]:
    return frozenset[str]().union(*(group.cases for group in groups))


@pytest.fixture(scope="module")
def cases() -> dict[str, Any]:
    return load_cases()


@pytest.fixture(scope="module")
def outcomes(cases: dict[str, Any]) -> list[Outcome]:
    chosen = [name for name in cases if zlib.crc32(name.encode()) % _EVERY == 0]
    return run_cases(chosen, cases, workers=len(os.sched_getaffinity(0)))


def described(outcomes: list[Outcome]) -> list[str]:
    return [f"{each.name}: {each.status}: {each.detail}" for each in outcomes]


def test_no_node_case_is_wrong_or_crashes(outcomes: list[Outcome]) -> None:
    assert not described([each for each in outcomes if each.status in ("wrong", "crash")])


def test_every_node_case_that_is_not_listed_passes(
    outcomes: list[Outcome], listed: frozenset[str]
) -> None:
    assert not described([e for e in outcomes if e.name not in listed and e.status != "pass"])


def test_no_node_case_that_passes_is_listed(
    outcomes: list[Outcome], listed: frozenset[str]
) -> None:
    assert not [each.name for each in outcomes if each.name in listed and each.status == "pass"]


def test_the_list_names_node_cases_that_exist_once_and_says_why(
    cases: dict[str, Any], groups: tuple[Group, ...]
) -> None:
    counts = Counter(name for group in groups for name in group.cases)
    assert set(counts) <= set(cases)
    assert set(counts.values()) == {1}
    assert all(group.reason for group in groups)


def test_most_node_cases_within_reach_are_not_listed(
    cases: dict[str, Any], groups: tuple[Group, ...], listed: frozenset[str]
) -> None:
    outside = {name for group in groups if group.outside for name in group.cases}
    assert len(set(cases) - listed) >= _PASSING * len(set(cases) - outside)
