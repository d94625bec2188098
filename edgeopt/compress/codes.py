"""Numbers as int8 codes: symmetric for weights, with a zero point for activations."""

import numpy as np
import numpy.typing as npt

from edgeopt.artifact import Range

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

#: -128 is left out so that the codes are symmetric, and their products fit pairwise in int16.
_LARGEST = 127


def is_blank(values: Floats) -> bool:
    """Tell whether there are nothing but zeros, as where only sizes count."""
    if values.size and values[(0,) * values.ndim]:
        return False
    # Of a weight without values, one number stands for all.
    return not any(values.strides) or not values.any()


def encode_weight(values: Floats, *, axis: int) -> tuple[Codes, Floats]:
    """Return codes of the same shape and one scale per index of axis: value = code * scale."""
    if is_blank(values):
        # As where only sizes count: a channel of zeros has codes of zero at any scale.
        return np.zeros(values.shape, np.int8), np.ones(values.shape[axis], np.float32)
    others = tuple(each for each in range(values.ndim) if each != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    # A channel of nothing but zeros has codes of zero at any scale.
    scale = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    # Below the smallest normal number a scale loses bits, and its inverse overflows.
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    codes = np.clip(np.rint(values / scale), -_LARGEST, _LARGEST).astype(np.int8)
    return codes, scale.reshape(-1)


def encode_range(limits: Range) -> tuple[np.float32, np.int8]:
    """Return scale and zero point that map a range, widened to hold zero, to -128..127."""
    low, high = min(limits.low, 0.0), max(limits.high, 0.0)
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    zero = np.clip(np.rint(-128 - low / scale), -128, 127)
    return scale, np.int8(zero)
