import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeopt.artifact import Range
from edgeopt.compress.codes import encode_range, encode_weight

#: A power of two, which float32 holds exactly.
LARGE = 2.0**99
FINITE = st.floats(-LARGE, LARGE, width=32)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4), elements=FINITE))
def test_codes_are_within_half_a_step_of_every_weight(values: np.ndarray) -> None:
    for axis in range(values.ndim):
        codes, scale = encode_weight(values, axis=axis)
        assert np.abs(codes.astype(int)).max() <= 127
        shape = [1] * values.ndim
        shape[axis] = -1
        step = scale.astype(np.float64).reshape(shape)
        error = np.abs(codes * step - values.astype(np.float64))
        assert (error <= step * 0.5001).all()


def test_a_channel_of_zeros_has_codes_of_zero() -> None:
    codes, scale = encode_weight(np.zeros((2, 3), np.float32), axis=0)
    assert not codes.any()
    assert np.isfinite(scale).all()
    assert (scale > 0).all()


def test_each_channel_has_its_own_scale() -> None:
    values = np.array([[1, 100], [-2, 50]], np.float32)
    assert encode_weight(values, axis=1)[1] == pytest.approx([2 / 127, 100 / 127])
    assert encode_weight(values, axis=0)[1] == pytest.approx([100 / 127, 50 / 127])


@given(FINITE, FINITE)
def test_zero_is_always_exact_and_both_ends_are_held(one: float, other: float) -> None:
    low, high = sorted((one, other))
    scale, zero = encode_range(Range(tensor="x", low=low, high=high))
    assert -128 <= zero <= 127
    assert scale > 0
    step = float(scale)
    assert (-128 - int(zero)) * step <= min(low, 0) + step
    assert (127 - int(zero)) * step >= max(high, 0) - step
    # No coarser than 255 steps over the range need.
    if (low, high) != (0, 0):
        assert step <= max((max(high, 0) - min(low, 0)) / 255 * 1.001, 1.2e-38)


def test_a_range_of_nothing_is_encoded_without_dividing_by_it() -> None:
    assert encode_range(Range(tensor="x", low=0.0, high=0.0))[0] == 1
