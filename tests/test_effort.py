"""Three levels of effort, as data."""

from pathlib import Path

import pytest

from edgeopt.artifact import Method
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.sensitivity import draw_calibration
from edgeopt.effort import QUICK, STANDARD, THOROUGH, read_effort
from edgeopt.errors import ConfigError
from edgeopt.task import Arrays
from tests.graphs import deep_model, text_model

METHODS: tuple[Method, ...] = ("float32", "int8-weights", "int4-blocks", "codebook4-blocks")


def test_a_level_is_found_by_its_name_and_another_word_is_refused() -> None:
    assert [read_effort(each.name) for each in (QUICK, STANDARD, THOROUGH)] == [
        QUICK,
        STANDARD,
        THOROUGH,
    ]
    with pytest.raises(ConfigError, match="write one of quick, standard, thorough"):
        read_effort("hard")


def test_more_effort_tries_more(tmp_path: Path) -> None:
    model = deep_model(tmp_path, width=128)
    counts = [
        sum(map(len, mixable_choices(model, METHODS, reconstruct=False, effort=each).values()))
        for each in (QUICK, STANDARD, THOROUGH)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[1]
    assert QUICK.swaps < STANDARD.swaps < THOROUGH.swaps


def test_quick_reads_no_sample_of_the_task(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    nowhere = Arrays(kind="arrays", train=tmp_path / "train.npz", test=tmp_path / "test.npz")
    drawn = draw_calibration(model, nowhere, effort=QUICK)
    assert drawn.fitted is None
    with pytest.raises(ConfigError):
        draw_calibration(model, nowhere, effort=STANDARD)
