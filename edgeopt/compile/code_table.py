"""What is computed of one tensor of codes and encoded again, as a table of all 256 codes.

Where a quantized graph leaves an activation in float between two quantizers, every result is one
of 256 that are known when the model is compiled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tvm import relax

from edgeopt.compile.encoding import Encoding, read_encoding
from edgeopt.compile.kernels import code_table
from edgeopt.compile.site import Site
from edgeopt.compile.views import constant_of, inside_reshape, operator_of, shape_of

_erf = np.vectorize(math.erf, otypes=[np.float32])
#: What operators of one element compute, in float32.
_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
    "negative": np.negative,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "erf": _erf,
    "tanh": np.tanh,
    "sigmoid": lambda x: np.float32(1) / (np.float32(1) + np.exp(-x)),
    "nn.relu": lambda x: np.maximum(x, np.float32(0)),
}


@dataclass(slots=True)
class _Tabulation:
    """Evaluates an expression for every code of the one tensor that it is computed of."""

    site: Site
    shape: tuple[int, ...]
    #: The DequantizeLinear that all leads to; None until it is found.
    root: relax.Call | None = None
    encoding: Encoding | None = None
    known: dict[relax.Expr, np.ndarray | None] = field(default_factory=dict)

    def evaluate(self, expr: relax.Expr) -> np.ndarray | None:
        """Return float32 [256] in the order of uint8, or one number; None for anything else."""
        number = constant_of(expr)
        if number is not None:
            single = number.size == 1 and number.dtype == np.float32
            return number.reshape(()) if single else None
        if expr not in self.known:
            self.known[expr] = self._evaluate_call(self.site.bound(expr))
        return self.known[expr]

    def _evaluate_call(self, bound: relax.Expr) -> np.ndarray | None:
        name = operator_of(bound)
        if not name or not isinstance(bound.ty, relax.TensorType) or shape_of(bound) != self.shape:
            return None
        if name == "relax.dequantize":
            return self._decode(bound)
        function = _FUNCTIONS.get(name.removeprefix("relax."))
        if function is None or bound.ty.dtype.dtype != "float32":
            return None
        values = [self.evaluate(each) for each in bound.args]
        if any(value is None for value in values):
            return None
        return function(*values).astype(np.float32)

    def _decode(self, bound: relax.Call) -> np.ndarray | None:
        codes = bound.args[0]
        encoding = read_encoding(bound, codes.ty.dtype.dtype)
        if encoding is None or constant_of(codes) is not None:
            return None
        if self.root is not None and not codes.same_as(self.root.args[0]):
            return None
        self.root, self.encoding = bound, encoding
        every = np.arange(code_table.CODES, dtype=np.uint8).view(encoding.dtype)
        return (every.astype(np.float32) - np.float32(encoding.zero)) * encoding.scale


def look_up_codes(site: Site, expr: relax.Expr, wanted: Encoding) -> relax.Expr | None:
    """Encode what is computed of one tensor of codes, element by element, by a table."""
    shape = shape_of(expr)
    if not code_table.fits_table(site.cpu, int(np.prod(shape))):
        return None
    inner = expr
    while (viewed := inside_reshape(site.bound(inner))) is not None:
        inner = viewed
    tabulation = _Tabulation(site, shape_of(inner))
    with np.errstate(all="ignore"):
        values = tabulation.evaluate(inner)
    if values is None or tabulation.root is None or not np.isfinite(values).all():
        return None
    return site.reshape(_emit(site, tabulation.root.args[0], wanted.encode_all(values)), shape)


def _emit(site: Site, codes: relax.Expr, table: np.ndarray) -> relax.Expr:
    size, result = int(np.prod(shape_of(codes))), table.dtype.name
    function = code_table.define_table(size, codes.ty.dtype.dtype, result)
    arguments = relax.Tuple([site.reshape(codes, (size,)), relax.const(table, result)])
    variable = site.builder.add_func(function, "code_table")
    return site.emit(relax.call_tir(variable, arguments, relax.TensorType((size,), result)))
