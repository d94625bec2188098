"""What can be asked of zeros, and what cannot."""

from typing import Any

import pytest
from pydantic import ValidationError

from edgeopt.sparsify import Sparsify


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ({"value": 0.5}, "50% of blocks zero (l2)"),
        ({"value": 0.25, "threshold": "global"}, "25% of blocks of all weights zero (l2)"),
        ({"pattern": "n:m", "n": 2, "m": 4, "criterion": "l1"}, "2 of 4 values left (l1)"),
        (
            {"pattern": "single", "value": 1.5, "threshold": "z-score"},
            "values below 1.5 z-score zero (l2)",
        ),
    ],
)
def test_a_rule_says_in_words_what_becomes_zero(given: dict[str, Any], title: str) -> None:
    rule = Sparsify.model_validate(given)
    assert rule.title == title
    assert Sparsify.model_validate_json(rule.model_dump_json()) == rule


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "need a value"),
        ({"value": 1.5}, "between 0 and 1"),
        ({"value": -1.0, "threshold": "absolute"}, "above 0"),
        ({"pattern": "n:m", "n": 4, "m": 4}, "n below m"),
        ({"pattern": "n:m", "n": 2, "m": 4, "threshold": "global"}, "no threshold"),
        ({"value": 0.5, "m": 4}, "neither n nor m"),
        ({"pattern": "single", "value": 0.5, "refit": True}, "only what stays of blocks"),
    ],
)
def test_a_rule_that_means_nothing_is_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Sparsify.model_validate(given)


def test_without_samples_as_many_values_become_zero() -> None:
    rule = Sparsify(value=0.5, criterion="wanda", refit=True)
    assert rule.needs_samples
    assert rule.by_size() == Sparsify(value=0.5)
    assert not rule.by_size().needs_samples
    assert rule.known
    assert not Sparsify(value=1.0, threshold="z-score").known
    # Where single values stay decides how many blocks do.
    assert not Sparsify(pattern="single", value=0.5).known
