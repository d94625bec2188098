"""The stated error of each function that replaces one of libm, over all that it tells apart."""

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from scipy.special import erf, expit
from tvm import te, tirx

from edgeopt.compile.kernels import functions

pytestmark = pytest.mark.host

#: Every magnitude of float32 that matters and both signs, and a dense walk where functions bend.
_MAGNITUDES = np.logspace(-30, 4, 100_000)
VALUES = np.concatenate([-_MAGNITUDES, _MAGNITUDES, np.linspace(-20, 20, 1_000_001), [0.0]])

#: Function, what float64 gives, and the largest absolute error that its docstring states.
ABSOLUTE = {
    "erf": (functions.erf, erf, 3.2e-7),
    "tanh_within": (functions.tanh_within, np.tanh, 4e-7),
    "sigmoid_within": (functions.sigmoid_within, expit, 2.4e-7),
}


def evaluate(function: Callable[[tirx.Expr], tirx.Expr], x: np.ndarray) -> np.ndarray:
    """Compile a function for this machine and apply it to float32 values."""
    source = te.placeholder(x.shape, "float32", name="x")
    made = te.compute(x.shape, lambda i: function(source(i)), name="y")
    compiled = tvm.compile(te.create_prim_func([source, made]), target="llvm")
    found = tvm.runtime.tensor(np.zeros_like(x))
    compiled(tvm.runtime.tensor(x), found)
    result: np.ndarray = found.numpy()
    return result


@pytest.mark.parametrize("name", ABSOLUTE)
def test_the_absolute_error_is_what_is_stated(name: str) -> None:
    function, exact, limit = ABSOLUTE[name]
    x = VALUES.astype(np.float32)
    error = np.abs(evaluate(function, x) - exact(x.astype(np.float64)))
    # Stated as it is, not with room to spare.
    assert limit / 4 < error.max() <= limit


def test_tanh_and_exp_are_within_the_ulps_that_are_stated() -> None:
    x = VALUES.astype(np.float32)
    for function, exact, ulps in ((functions.tanh, np.tanh, 4.3), (functions.exp, np.exp, 2.0)):
        within = x[np.abs(x) < 87.0]
        wanted = exact(within.astype(np.float64))
        error = np.abs(evaluate(function, within) - wanted)
        # Beside 0 the spacing of subnormals would be asked for, which x86 may flush.
        spacing = np.spacing(np.maximum(np.abs(wanted), 1e-37).astype(np.float32))
        assert (error / spacing).max() <= ulps


def test_functions_of_a_cell_never_leave_their_range() -> None:
    x = np.concatenate([VALUES, [np.inf, -np.inf]]).astype(np.float32)
    assert np.abs(evaluate(functions.tanh_within, x)).max() <= 1.0
    sigmoid = evaluate(functions.sigmoid_within, x)
    assert sigmoid.min() >= 0.0
    assert sigmoid.max() <= 1.0
