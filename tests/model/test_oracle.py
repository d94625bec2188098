import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.model.oracle import (
    Running,
    open_session,
    run_model,
    run_samples,
    run_session,
    seeded_inputs,
)
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


class Slow:
    """A session whose runs wait to be let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.free = threading.Event()

    def run(self, _names: None, feeds: dict[str, Any]) -> list[Any]:
        self.begun += 1
        assert self.free.wait(timeout=60)
        return [feeds["x"]]


def test_samples_run_while_something_else_is_done(tmp_path: Path) -> None:
    model = image_model(tmp_path)
    samples = {"pixels": np.stack([seeded_inputs(model, seed)["pixels"] for seed in range(3)])}
    session = open_session(model.path)
    running = Running(session, samples)
    for found, expected in zip(running.outputs(), run_session(session, samples), strict=True):
        assert np.array_equal(found, expected)
    running.stop()


def test_of_samples_that_are_stopped_no_other_one_begins() -> None:
    session: Any = Slow()
    running = Running(session, {"x": np.zeros((100, 1))})
    # Those that began are let go while the others are being stopped.
    timer = threading.Timer(0.5, session.free.set)
    timer.start()
    running.stop()
    timer.join()
    assert 0 < session.begun < 100
