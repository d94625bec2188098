"""Word frequencies and a linear model: what an encoder has to beat.

TF-IDF of words and pairs of words (sublinear frequencies, smoothed weights, rows of length one) and
multinomial logistic regression with C = 10, as scikit-learn's TfidfVectorizer and
LogisticRegression compute them (user guide of 1.5, 6.2.3.4 and 1.1.11).
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, hstack

from edgeopt.model.oracle import Array

_C = 10.0

Labelled = Sequence[tuple[str, str]]


def score_words(train: Labelled, test: Labelled) -> float:
    """Fit on labelled texts, and return the share of others that are labelled right."""
    counted = [_count(text) for text, _ in train]
    present = Counter(term for each in counted for term in each)
    weights = {term: np.log((1 + len(train)) / (1 + count)) + 1 for term, count in present.items()}
    places = {term: place for place, term in enumerate(sorted(weights))}
    x = _rows(counted, places, weights)
    names, labels = np.unique([label for _, label in train], return_inverse=True)
    coefficients = _fit(x, labels, len(names))
    scores = _with_one(_rows([_count(text) for text, _ in test], places, weights)) @ coefficients
    return float((names[scores.argmax(axis=1)] == [label for _, label in test]).mean())


def _count(text: str) -> Counter[str]:
    words = re.findall(r"(?u)\b\w\w+\b", text.lower())
    return Counter([*words, *(" ".join(pair) for pair in pairwise(words))])


def _rows(
    counted: Sequence[Counter[str]], places: dict[str, int], weights: dict[str, float]
) -> csr_matrix:
    cells = [
        (row, places[term], (1 + np.log(count)) * weights[term])
        for row, each in enumerate(counted)
        for term, count in each.items()
        if term in places
    ]
    rows, columns, values = (np.array(each) for each in zip(*cells, strict=True))
    sizes = np.sqrt(np.bincount(rows, values * values, len(counted)))
    shape = (len(counted), len(places))
    return csr_matrix((values / sizes[rows], (rows, columns)), shape=shape)


def _with_one(x: csr_matrix) -> csr_matrix:
    return hstack([x, csr_matrix(np.ones((x.shape[0], 1)))]).tocsr()


def _fit(x: csr_matrix, labels: Array, classes: int) -> Array:
    """Return coefficients [terms + 1, classes]; the last row, which is not held small, is added."""
    given = _with_one(x)
    wanted = np.eye(classes)[labels]
    held = np.ones((given.shape[1], 1))
    held[-1] = 0

    def loss(flat: Array) -> tuple[float, Array]:
        now = flat.reshape(given.shape[1], classes)
        scores = given @ now
        scores -= scores.max(axis=1, keepdims=True)
        logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        value = 0.5 * float((held * now * now).sum()) - _C * float((wanted * logs).sum())
        slope = held * now + _C * (given.T @ (np.exp(logs) - wanted))
        return value, slope.reshape(-1)

    start = np.zeros(given.shape[1] * classes)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    result: Array = found.x.reshape(given.shape[1], classes)
    return result
