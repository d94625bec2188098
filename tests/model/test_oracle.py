from pathlib import Path

import numpy as np
import pytest

from edgeopt.model.oracle import run_model, run_samples, seeded_inputs
from tests.graphs import image_model, text_model


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_seeded_inputs_are_valid_and_repeat(tmp_path: Path, seed: int) -> None:
    model = text_model(tmp_path, vocabulary=11)
    feeds = seeded_inputs(model, seed)
    again = seeded_inputs(model, seed)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
    assert feeds["input_ids"].min() >= 0
    assert feeds["input_ids"].max() < 11
    mask = feeds["attention_mask"][0]
    assert mask[0] == 1
    assert set(mask) <= {0, 1}
    assert all(np.diff(mask) <= 0)


def test_different_seeds_draw_different_inputs(tmp_path: Path) -> None:
    model = image_model(tmp_path)
    first, second = (seeded_inputs(model, seed)["pixels"] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_samples_run_one_by_one_and_are_stacked(tmp_path: Path) -> None:
    model = image_model(tmp_path)
    rows = [seeded_inputs(model, seed)["pixels"] for seed in range(3)]
    stacked = run_samples(model, {"pixels": np.stack(rows)})[0]
    assert stacked.shape == (3, 1, 10)
    for row, output in zip(rows, stacked, strict=True):
        assert np.array_equal(run_model(model, {"pixels": row})[0], output)
