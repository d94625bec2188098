"""Compare what the board computed with what onnxruntime computed on the host."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.artifact import Arithmetic, Fact, Parity
from edgeopt.errors import ConfigError, ParityBroken

Array = NDArray[Any]
#: Metric of a task on all its outputs, each [S, *shape], for the first S labelled samples.
Score = Callable[[Sequence[Array]], float]

#: float32 on both sides, relative to the largest value of the output.
FLOAT32_TOLERANCE = 1e-4
#: Where the host rounds each tensor to 11 bits, and a board may keep sums in float32. Where
#: activations are codes, a rounding that falls the other way moves an output by a whole step of
#: its scale, here and between two versions of onnxruntime.
TOLERANCES: Mapping[Arithmetic, float] = {
    "float32": FLOAT32_TOLERANCE,
    "float16": 1e-2,
    "integer": 0.1,
}
#: Values beyond stand for infinity (masked scores): they must not set an output's scale.
_HUGE = 1e30


class Difference(Fact):
    """How far one output is off, and where most."""

    output: str
    max_abs: float
    #: max |board - host| / max |host| of this output.
    max_rel: float
    sample: int
    index: tuple[int, ...]
    board: float
    host: float

    def __str__(self) -> str:
        return (
            f"output '{self.output}', sample {self.sample}, at {list(self.index)}: "
            f"{self.board:.7g} on the board, {self.host:.7g} on the host"
        )


class Comparison(Fact):
    """All outputs of the same samples, board against host."""

    samples: int
    differences: tuple[Difference, ...]
    #: Share of samples whose argmax of the first output agrees; None without a class axis.
    agreement: float | None

    @property
    def worst(self) -> Difference:
        """The output with the largest relative difference."""
        return max(self.differences, key=lambda each: each.max_rel)


def compare_outputs(
    board_outputs: Sequence[Array], host_outputs: Sequence[Array], *, names: Sequence[str] = ()
) -> Comparison:
    """Compare outputs [S, *shape] pair by pair.

    Raise ParityBroken on a NaN on either side, and on an infinity that the other side has not;
    ConfigError when there is nothing to compare or the shapes differ.
    """
    names = names or tuple(str(index) for index in range(len(host_outputs)))
    if not host_outputs or len({len(host_outputs), len(board_outputs), len(names)}) != 1:
        raise ConfigError(
            "there are no two sets of outputs to compare",
            why=f"{len(board_outputs)} of the board, {len(host_outputs)} of the host",
        )
    differences = tuple(
        _compare_output(name, board, host)
        for name, board, host in zip(names, board_outputs, host_outputs, strict=True)
    )
    return Comparison(
        samples=len(host_outputs[0]),
        differences=differences,
        agreement=_agreement(board_outputs[0], host_outputs[0]),
    )


def _compare_output(name: str, board: Array, host: Array) -> Difference:
    if board.shape != host.shape or board.ndim < 1 or board.size == 0:
        raise ConfigError(
            f"output '{name}' cannot be compared",
            why=f"{board.shape} on the board, {host.shape} on the host",
        )
    found, expected = board.astype(np.float64), host.astype(np.float64)
    _require_numbers(name, found, expected)
    huge = np.abs(expected) >= _HUGE
    scale = float(np.max(np.abs(expected), initial=0, where=~huge))
    gaps = np.abs(np.subtract(found, expected, out=np.zeros_like(found), where=~huge))
    shares = gaps / max(scale, 1e-30)
    both = huge & (found != expected)
    shares[both] = np.abs(found[both] / expected[both] - 1)
    where = tuple(int(axis) for axis in np.unravel_index(int(np.argmax(shares)), shares.shape))
    return Difference(
        output=name,
        max_abs=float(np.max(gaps)),
        max_rel=float(shares[where]),
        sample=where[0],
        index=where[1:],
        board=_finite(found[where]),
        host=_finite(expected[where]),
    )


def _require_numbers(name: str, found: Array, expected: Array) -> None:
    broken = np.isnan(found) | np.isnan(expected)
    broken |= (np.isinf(found) | np.isinf(expected)) & (found != expected)
    if not broken.any():
        return
    where = tuple(int(axis) for axis in np.argwhere(broken)[0])
    raise ParityBroken(
        f"output '{name}' is not a number that can be compared",
        why=f"sample {where[0]}, at {list(where[1:])}: {found[where]} on the board, "
        f"{expected[where]} on the host; {int(broken.sum())} such values",
        fix="try a plan with less harm (--profile float32) to find the step that overflows",
    )


def _finite(value: np.float64) -> float:
    return float(np.nan_to_num(value))


def _agreement(board: Array, host: Array) -> float | None:
    """Return the share of equal argmaxes over the last axis, where it is an axis of classes."""
    if host.ndim < 2 or host.shape[-1] < 2 or not np.issubdtype(host.dtype, np.floating):
        return None
    equal = np.argmax(board, axis=-1) == np.argmax(host, axis=-1)
    return float(np.mean(equal.reshape(len(host), -1).all(axis=1)))


def make_parity(
    board_outputs: Sequence[Array],
    host_outputs: Sequence[Array],
    *,
    names: Sequence[str] = (),
    arithmetic: Arithmetic = "float32",
    metric: str | None = None,
    score: Score | None = None,
) -> Parity:
    """Compare all outputs, and score both sides when these are the task's labelled samples."""
    comparison = compare_outputs(board_outputs, host_outputs, names=names)
    scored = score is not None
    return Parity(
        samples=comparison.samples,
        max_abs=max(each.max_abs for each in comparison.differences),
        max_rel=comparison.worst.max_rel,
        limit=TOLERANCES[arithmetic],
        agreement=comparison.agreement,
        worst=str(comparison.worst),
        worst_sample=comparison.worst.sample,
        metric=metric if scored else None,
        metric_samples=comparison.samples if scored else 0,
        metric_board=_score(score, board_outputs),
        metric_host=_score(score, host_outputs),
    )


def _score(score: Score | None, outputs: Sequence[Array]) -> float | None:
    if score is None:
        return None
    value = float(score(outputs))
    if not math.isfinite(value):
        raise ParityBroken("the metric of the deployed model is not a number", why=str(value))
    return value


def check_parity(parity: Parity, tolerance: float = FLOAT32_TOLERANCE) -> None:
    """Raise ParityBroken when the largest relative difference exceeds the tolerance."""
    # Written so that a NaN fails.
    if parity.samples > 0 and parity.max_rel <= tolerance:
        return
    raise parity_error(
        f"{parity.worst}; relative difference {parity.max_rel:.2g}, {tolerance:.2g} is allowed"
    )


def parity_error(why: str) -> ParityBroken:
    """Make the error of outputs that differ by more than is allowed."""
    return ParityBroken(
        "outputs on the board are not those of onnxruntime on the host",
        why=why,
        fix="deploy with --profile float32 to see whether the plan or the compiler is at fault",
    )
