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
    return float(sample_harms(found, expected, classes=False).sum())


def measure_harm(found: Sequence[Array], expected: Sequence[Array], *, classes: bool) -> float:
    """Return the squared error of outputs [S, ...] relative to their squares.

    With classes, that of the first output's scores, less their mean over classes, which no
    probability depends on. Errors of several layers that know nothing of each other add up in it.
    A divergence does not: on samples that a model is sure of, such as those it was trained on, it
    is nothing until the sum of all errors turns an answer.
    """
    return float(sample_harms(found, expected, classes=classes).sum())


def sample_harms(found: Sequence[Array], expected: Sequence[Array], *, classes: bool) -> Array:
    """Return what each of S samples adds to the harm: float64 [S]."""
    if classes:
        found, expected = ([_centred(each[0])] for each in (found, expected))
    shares = [
        _squares(a - b.astype(np.float64)) / max(float(_squares(b).sum()), 1e-30)
        for a, b in zip(found, expected, strict=True)
    ]
    mean: Array = np.mean(shares, axis=0)
    return mean


def _centred(scores: Array) -> Array:
    centred: Array = scores - scores.mean(axis=-1, keepdims=True, dtype=np.float64)
    return centred


def _squares(values: Array) -> Array:
    """Return the sum of squares of each sample of values [S, ...]: float64 [S]."""
    sums: Array = np.square(values, dtype=np.float64).reshape(len(values), -1).sum(axis=1)
    return sums


def _log_probabilities(scores: Array) -> Array:
    rows = scores.reshape(len(scores), -1, scores.shape[-1]).astype(np.float64)
    shifted = rows - rows.max(axis=-1, keepdims=True)
    logs: Array = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs
