"""Without labels a plan is judged by how often it agrees with the model as it was."""

from pathlib import Path

import numpy as np
import pytest

from edgeopt.artifact import Footprint, Method
from edgeopt.budget import Budget
from edgeopt.compress import Cost, Fit, Infeasible, fit_plan
from edgeopt.compress.judge import compare_scores
from edgeopt.task import Arrays
from tests.graphs import text_model


def fit(folder: Path, method: Method, budget: Budget) -> Fit:
    model = text_model(folder)
    ids = np.random.default_rng(0).integers(0, 500, size=(160, 1, 8))
    np.savez(folder / "train.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    task = Arrays(kind="arrays", train=folder / "train.npz")
    need = Footprint(flash=1, weights=0, weights_resident=0, arena=0, runtime=0)
    return fit_plan(
        model, (method,), budget, task, cost=Cost(lambda _: need), directory=folder / "fit"
    )


def test_a_task_without_labels_counts_answers_that_are_others(tmp_path: Path) -> None:
    near = fit(tmp_path, "float16", Budget(accuracy_drop=0.05)).chosen
    assert near.accuracy is None
    assert near.drop == 0.0
    assert near.divergence is not None
    assert near.divergence < 1e-2


def test_the_limit_on_the_drop_holds_for_answers_that_are_others(tmp_path: Path) -> None:
    with pytest.raises(Infeasible, match="accuracy drop binds") as caught:
        fit(tmp_path, "int2-blocks", Budget(accuracy_drop=0.01))
    assert (caught.value.candidates[0].drop or 0) > 0.01


def test_agreement_is_the_share_of_equal_answers_and_nan_never_agrees() -> None:
    expected = np.eye(4, dtype=np.float32)[[0, 1, 2, 3]][:, None, :] * 5
    found = expected.copy()
    found[1] = found[0]
    kept = compare_scores(found, expected)
    assert kept.agreement == pytest.approx(0.75)
    assert kept.divergence is not None
    assert kept.divergence > 0
    found[2, 0, 2] = np.nan
    broken = compare_scores(found, expected)
    assert broken.agreement == pytest.approx(0.5)
    assert broken.divergence is None


def test_probabilities_are_compared_as_they_are() -> None:
    expected = np.array([[0.7, 0.3], [0.2, 0.8]], np.float32)
    found = np.array([[0.6, 0.4], [0.2, 0.8]], np.float32)
    kept = compare_scores(found, expected)
    by_hand = 0.7 * np.log(0.7 / 0.6) + 0.3 * np.log(0.3 / 0.4)
    assert kept.divergence == pytest.approx(by_hand / 2, rel=1e-4)
