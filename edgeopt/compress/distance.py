"""How far outputs are from others: what harm means."""

from collections.abc import Sequence

import numpy as np

from edgeopt.model.oracle import Array


def measure_distance(found: Sequence[Array], expected: Sequence[Array], *, classes: bool) -> float:
    """Return how far outputs [S, ...] are from others, averaged over samples.

    With classes, the Kullback-Leibler divergence of the first output's class probabilities, in
    nats; else the squared error of all outputs relative to their squares.
    """
    if classes:
        ours, theirs = _log_probabilities(found[0]), _log_probabilities(expected[0])
        return max(float((np.exp(theirs) * (theirs - ours)).sum(axis=-1).mean()), 0.0)
    ratios = [
        np.square(a.astype(np.float64) - b).sum()
        / max(float(np.square(b, dtype=float).sum()), 1e-30)
        for a, b in zip(found, expected, strict=True)
    ]
    return float(np.mean(ratios))


def measure_harm(found: Sequence[Array], expected: Sequence[Array], *, classes: bool) -> float:
    """Return the squared error of outputs [S, ...] relative to their squares.

    With classes, that of the first output's scores, less their mean over classes, which no
    probability depends on. Errors of several layers that know nothing of each other add up in it.
    A divergence does not: on samples that a model is sure of, such as those it was trained on, it
    is nothing until the sum of all errors turns an answer.
    """
    if not classes:
        return measure_distance(found, expected, classes=False)
    ours, theirs = (
        scores - scores.mean(axis=-1, keepdims=True)
        for scores in (each[0].astype(np.float64) for each in (found, expected))
    )
    return float(np.square(ours - theirs).sum() / max(float(np.square(theirs).sum()), 1e-30))


def _log_probabilities(scores: Array) -> Array:
    rows = scores.reshape(len(scores), -1, scores.shape[-1]).astype(np.float64)
    shifted = rows - rows.max(axis=-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs
