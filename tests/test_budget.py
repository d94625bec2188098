"""Budgets: what the command line names wins over what the profile says."""

import pytest
from pydantic import ValidationError

from edgeopt.budget import Budget


def test_a_given_limit_wins_and_the_others_stay() -> None:
    profile = Budget(flash=64_000_000, ram=64_000_000, accuracy_drop=0.01)
    line = Budget(ram=32_000_000, latency=30.0)
    merged = profile.merged(line)
    assert merged == Budget(flash=64_000_000, ram=32_000_000, latency=30.0, accuracy_drop=0.01)


def test_a_limit_of_zero_is_a_limit() -> None:
    assert Budget(accuracy_drop=0.01).merged(Budget(accuracy_drop=0.0)).accuracy_drop == 0.0


def test_merging_changes_neither_budget() -> None:
    profile, line = Budget(ram=2), Budget(ram=1)
    profile.merged(line)
    assert (profile.ram, line.ram) == (2, 1)
    with pytest.raises(ValidationError, match="frozen"):
        profile.ram = 3  # type: ignore[misc]


def test_a_budget_survives_json() -> None:
    budget = Budget(flash=1, latency=0.5, accuracy_drop=0.02)
    assert Budget.model_validate_json(budget.model_dump_json()) == budget
