"""Which values of matrices become zero, and how what stays makes up for them.

Sizes as a measure of what matters: Han et al. 2015, arXiv 1506.02626; |W| times the norm of what it
is multiplied with, compared within each output: Wanda (Sun et al. 2023, arXiv 2306.11695, eq. 1);
n of every m consecutive inputs: Mishra et al. 2021, arXiv 2104.08378; blocks: Gray et al. 2017,
GPU Kernels for Block-Sparse Weights. What stays of an output is then fitted by least squares for
the layer's inputs (Frantar & Alistarh 2023, SparseGPT, arXiv 2301.00774, eq. 2: the exact answer,
which that paper approximates).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from edgeopt.artifact import Choice
from edgeopt.compress.codes import Floats
from edgeopt.compress.edit import Edit
from edgeopt.compress.factors import DAMPING, Doubles
from edgeopt.model.graph import Weight
from edgeopt.sparsify import Criterion, Sparsify

Kept = npt.NDArray[np.bool_]


def sparsify_weights(
    model: ModelProto,
    wanted: Sequence[tuple[Weight, Choice]],
    hessians: Mapping[str, Doubles],
) -> tuple[ModelProto, dict[str, Kept]]:
    """Set values of weights to zero as their choices say; returns which values [K, N] stay.

    hessians: X^T X of each layer's inputs by its weight's name, where a choice needs them.
    """
    asked = [(weight, choice) for weight, choice in wanted if choice.zeros is not None]
    if not asked:
        return model, {}
    edit = Edit(model)
    matrices = {weight.name: input_rows(weight, edit.value(weight)) for weight, _ in asked}
    kept: dict[str, Kept] = {}
    for rule in dict.fromkeys(choice.zeros for _, choice in asked):
        assert rule is not None
        same = [
            (weight.name, choice.width or 1) for weight, choice in asked if choice.zeros == rule
        ]
        scores = [
            score_blocks(matrices[name], _together(rule, width), rule.criterion, norms)
            for name, width in same
            for norms in (_norms(hessians.get(name)),)
        ]
        for (name, width), stays in zip(same, choose_kept(scores, rule), strict=True):
            kept[name] = np.repeat(stays, _together(rule, width), axis=1)
    for weight, choice in asked:
        assert choice.zeros is not None
        values, stays = matrices[weight.name], kept[weight.name]
        if choice.zeros.refit:
            values = fit_kept(values, stays, hessians[weight.name])
        edit.put(weight, input_rows(weight, np.where(stays, values, np.float32(0))))
    return edit.finish(), kept


def input_rows(weight: Weight, values: Floats) -> Floats:
    """Turn a weight to [K, N], its outputs last, or back."""
    return values if weight.axis == 1 else np.ascontiguousarray(values.T)


def _together(rule: Sparsify, width: int) -> int:
    return width if rule.pattern == "blocks" else 1


def _norms(hessian: Doubles | None) -> Doubles | None:
    """Return the norm [K] of each input over all samples."""
    return None if hessian is None else np.sqrt(np.diag(hessian))


def score_blocks(
    values: Floats, width: int, criterion: Criterion, norms: Doubles | None = None
) -> Doubles:
    """Return how much blocks of so many columns matter, [K, N / width], of a matrix [K, N].

    The mean of a block's |w|, or its root mean square, so that one number is a threshold for blocks
    of any size; of Wanda, with each |w| times the norm [K] of its input.
    """
    depth, columns = values.shape
    sizes = np.abs(values, dtype=np.float64)
    if criterion == "wanda":
        assert norms is not None
        sizes *= norms[:, None]
    split = sizes.reshape(depth, columns // width, width)
    scores: Doubles = split.mean(axis=2)
    if criterion != "l1":
        scores = np.sqrt(np.square(split).mean(axis=2))
    return scores


def choose_kept(scores: Sequence[Doubles], rule: Sparsify) -> list[Kept]:
    """Return which blocks stay, for the scores [K, blocks] of each weight.

    Where a share becomes zero it is that share exactly, rounded down; by Wanda, of each output.
    """
    if rule.pattern == "n:m":
        assert rule.n is not None
        assert rule.m is not None
        return [_keep_of(each, rule.n, rule.m) for each in scores]
    value = rule.value
    assert value is not None
    match rule.threshold:
        case "absolute":
            return [each >= value for each in scores]
        case "relative":
            return [each >= value * each.max() for each in scores]
        case "z-score":
            return [each >= each.mean() + value * each.std() for each in scores]
        case "global":
            together = _without_least(np.concatenate([each.reshape(-1) for each in scores]), value)
            parts = np.split(together, np.cumsum([each.size for each in scores])[:-1])
            return [part.reshape(each.shape) for part, each in zip(parts, scores, strict=True)]
        case "share" if rule.criterion == "wanda":
            return [
                np.stack([_without_least(column, value) for column in each.T], axis=1)
                for each in scores
            ]
        case "share":
            return [_without_least(each.reshape(-1), value).reshape(each.shape) for each in scores]


def _without_least(scores: Doubles, share: float) -> Kept:
    """Leave out a share of scores [n], the least ones; of equals the first."""
    kept = np.ones(len(scores), bool)
    kept[np.argsort(scores, kind="stable")[: int(share * len(scores))]] = False
    return kept


def _keep_of(scores: Doubles, n: int, m: int) -> Kept:
    """Keep the n greatest of every m consecutive scores of a column; of equals the first."""
    depth, columns = scores.shape
    groups = scores.reshape(depth // m, m, columns)
    order = np.argsort(-groups, axis=1, kind="stable")
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, order[:, :n], values=True, axis=1)
    return kept.reshape(depth, columns)


def fit_kept(values: Floats, kept: Kept, hessian: Doubles) -> Floats:
    """Fit what stays of each column of W [K, N], so that X W changes least: min |X W' - X W|^2.

    hessian: X^T X [K, K], of which a share of the mean diagonal is added, as in GPTQ. Columns that
    keep the same rows are fitted at once.
    """
    damped = hessian.copy()
    damped[np.diag_indices(len(damped))] += DAMPING * np.diag(hessian).mean() or 1.0
    wanted = damped @ values
    fitted = np.zeros_like(values)
    patterns, place = np.unique(kept, axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        rows, columns = np.flatnonzero(pattern), np.flatnonzero(place == number)
        if len(rows):
            part = np.ix_(rows, columns)
            fitted[part] = np.linalg.solve(damped[np.ix_(rows, rows)], wanted[part])
    return fitted
