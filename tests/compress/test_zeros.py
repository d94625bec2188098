"""Which values become zero, by criterion, threshold and pattern, and what makes up for them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgeopt.artifact import Choice
from edgeopt.compress.factors import DAMPING
from edgeopt.compress.zeros import (
    choose_kept,
    fit_kept,
    input_rows,
    score_blocks,
    sparsify_weights,
)
from edgeopt.model.graph import initializers, weights
from edgeopt.model.oracle import Array
from edgeopt.sparsify import Criterion, Sparsify, Threshold
from tests.compress.test_reconstruct import correlated, hessian_of
from tests.graphs import normal, text_model

SEEDS = st.integers(0, 2**16)
SHARES = st.floats(0.01, 0.99)


@pytest.mark.parametrize("criterion", ["l1", "l2", "wanda"])
@pytest.mark.parametrize("width", [1, 4, 16])
def test_scores_are_those_of_the_formulas(criterion: Criterion, width: int) -> None:
    values, x = normal(0, 24, 32), normal(1, 50, 24) * np.arange(1, 25, dtype=np.float32)
    norms = np.sqrt(np.diag(hessian_of(x)))
    found = score_blocks(values, width, criterion, norms)
    for k in range(24):
        for panel in range(32 // width):
            block = np.abs(values[k, panel * width : (panel + 1) * width].astype(np.float64))
            if criterion == "wanda":
                block = block * np.linalg.norm(x[:, k].astype(np.float64))
            wanted = block.mean() if criterion == "l1" else np.sqrt((block**2).mean())
            assert found[k, panel] == pytest.approx(wanted, rel=1e-6)


@settings(deadline=None)
@given(seed=SEEDS, share=SHARES, criterion=st.sampled_from(["l1", "l2", "wanda"]))
def test_the_share_of_zeros_is_exact_and_what_stays_counts_more(
    seed: int, share: float, criterion: Criterion
) -> None:
    scores = score_blocks(normal(seed, 24, 32), 4, criterion, np.ones(24))
    (kept,) = choose_kept([scores], Sparsify(value=share, criterion=criterion))
    if criterion == "wanda":
        # Of each output by itself.
        assert ((~kept).sum(axis=0) == int(share * 24)).all()
        return
    assert (~kept).sum() == int(share * kept.size)
    if not kept.all():
        assert scores[~kept].max() <= scores[kept].min()


@settings(deadline=None)
@given(seed=SEEDS, share=SHARES)
def test_a_global_share_takes_most_from_what_is_small(seed: int, share: float) -> None:
    small, large = np.abs(normal(seed, 16, 8)) / 100, np.abs(normal(seed + 1, 16, 24)) + 1
    rule = Sparsify(value=share, threshold="global")
    kept = choose_kept([small.astype(np.float64), large.astype(np.float64)], rule)
    assert [each.shape for each in kept] == [small.shape, large.shape]
    assert sum((~each).sum() for each in kept) == int(share * 512)
    assert kept[1].all() or not kept[0].any()


@pytest.mark.parametrize(
    ("threshold", "value"), [("absolute", 0.7), ("relative", 0.3), ("z-score", -0.5)]
)
def test_thresholds_are_those_of_the_formulas(threshold: Threshold, value: float) -> None:
    scores = np.abs(normal(0, 40, 40)).astype(np.float64)
    limits = {
        "absolute": value,
        "relative": value * scores.max(),
        "z-score": scores.mean() + value * scores.std(),
    }
    (kept,) = choose_kept([scores], Sparsify(value=value, threshold=threshold))
    assert np.array_equal(kept, scores >= limits[threshold])
    # Both happen.
    assert 0 < kept.sum() < kept.size


def test_a_relative_and_a_standardized_threshold_do_not_depend_on_the_scale() -> None:
    scores = np.abs(normal(3, 30, 30)).astype(np.float64)
    for threshold in ("relative", "z-score", "absolute"):
        rule = Sparsify(value=0.4, threshold=threshold)
        first, second = choose_kept([scores, 8 * scores], rule)
        assert np.array_equal(first, second) == (threshold != "absolute")


@settings(deadline=None)
@given(seed=SEEDS, pair=st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8)]))
def test_n_of_every_m_inputs_stay_the_largest_ones(seed: int, pair: tuple[int, int]) -> None:
    n, m = pair
    scores = np.abs(normal(seed, 16, 12)).astype(np.float64)
    (kept,) = choose_kept([scores], Sparsify(pattern="n:m", n=n, m=m))
    groups = kept.reshape(16 // m, m, 12)
    assert (groups.sum(axis=1) == n).all()
    split = scores.reshape(16 // m, m, 12)
    least = np.where(groups, split, np.inf).min(axis=1)
    assert (np.where(groups, 0, split).max(axis=1) <= least).all()


def test_what_stays_is_the_answer_of_least_squares() -> None:
    values, x = normal(0, 32, 12), correlated(1, 400, 32)
    kept = np.repeat(normal(2, 32, 3) > 0.2, 4, axis=1)
    hessian = hessian_of(x)
    found = fit_kept(values, kept, hessian)
    assert not found[~kept].any()
    # The same with the damping as further rows of X.
    more = np.sqrt(DAMPING * np.diag(hessian).mean()) * np.eye(32)
    rows = np.concatenate([x.astype(np.float64), more])
    for column in range(12):
        free = kept[:, column]
        wanted = np.linalg.lstsq(rows[:, free], rows @ values[:, column], rcond=None)[0]
        assert np.allclose(found[free, column], wanted, atol=1e-4)
    left = np.linalg.norm(x @ (np.where(kept, values, 0) - values))
    assert np.linalg.norm(x @ (found - values)) < 0.7 * left


@pytest.mark.parametrize("refit", [False, True])
def test_blocks_of_a_weight_and_of_a_turned_one_become_zero_as_a_whole(
    tmp_path: Path, refit: bool
) -> None:
    model = onnx.load(text_model(tmp_path).path)
    known = {each.name: each for each in weights(model.graph)}
    rule = Sparsify(value=0.5, refit=refit)
    asked = [
        (known["mix"], Choice(weight="mix", method="float32-sparse", width=16, zeros=rule)),
        (known["head"], Choice(weight="head", method="float32-sparse", width=4, zeros=rule)),
    ]
    hessians = {"mix": hessian_of(normal(3, 90, 32)), "head": hessian_of(normal(4, 90, 64))}
    before = {name: numpy_helper.to_array(each) for name, each in initializers(model.graph).items()}
    made, kept = sparsify_weights(model, asked, hessians)
    for weight, choice in asked:
        assert choice.width is not None
        stored = numpy_helper.to_array(initializers(made.graph)[weight.name])
        values: Array = input_rows(weight, stored)
        blocks = values.reshape(len(values), -1, choice.width)
        gone = ~blocks.any(axis=2)
        assert gone.sum() == gone.size // 2
        assert np.array_equal(np.repeat(~gone, choice.width, axis=1), kept[weight.name])
        old = input_rows(weight, before[weight.name])
        assert np.array_equal(values[values != 0], old[values != 0]) is not refit
