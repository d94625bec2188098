"""Constant operands as they are stored: float32, float16 or int8 with scales."""

from dataclasses import dataclass

import numpy as np
from tvm import relax

from edgeopt.compile.site import Site
from edgeopt.compile.views import constant_of, operator_of


@dataclass(frozen=True, slots=True)
class Stored:
    """A constant array and, for int8, its scales: one, or one along an axis."""

    values: np.ndarray
    scales: np.ndarray | None = None
    axis: int = 0

    @property
    def column_scales(self) -> np.ndarray | None:
        """One float32 scale per column of a matrix; None when nothing is to be scaled."""
        if self.scales is None:
            return None
        columns = self.values.shape[-1]
        return np.ascontiguousarray(np.broadcast_to(self.scales.reshape(-1), (columns,)), "float32")

    def permuted(self, axes: tuple[int, ...]) -> "Stored":
        """Transpose the array; the scales stay along the same elements."""
        return Stored(
            np.ascontiguousarray(self.values.transpose(axes)), self.scales, axes.index(self.axis)
        )

    def reshaped(self, shape: tuple[int, ...]) -> "Stored | None":
        """Reshape the array, unless its scales lie along an axis that is lost."""
        if self.scales is not None and self.scales.size > 1:
            return None
        return Stored(self.values.reshape(shape), self.scales, 0)

    @property
    def scales_columns(self) -> bool:
        """Whether the scales commute with a sum over all axes but the last."""
        if self.scales is None or self.scales.size == 1:
            return True
        return self.axis == self.values.ndim - 1


def stored_of(site: Site, expr: relax.Expr) -> Stored | None:
    """Follow casts, dequantizations and transposes of a constant to what is stored."""
    value = constant_of(expr)
    if value is not None:
        return Stored(value)
    bound = site.bound(expr)
    name = operator_of(bound)
    if name == "relax.dequantize":
        return _dequantized(site, bound)
    if name not in ("relax.astype", "relax.permute_dims", "relax.reshape"):
        return None
    inner = stored_of(site, bound.args[0])
    if inner is None:
        return None
    if name == "relax.astype":
        return inner if inner.values.dtype == np.float16 else None
    if name == "relax.reshape":
        return inner.reshaped(tuple(int(size) for size in bound.ty.shape))
    rank = inner.values.ndim
    axes = bound.attrs.axes or range(rank - 1, -1, -1)
    return inner.permuted(tuple(int(axis) % rank for axis in axes))


def _dequantized(site: Site, call: relax.Call) -> Stored | None:
    inner = stored_of(site, call.args[0])
    scales, zero = constant_of(call.args[1]), constant_of(call.args[2])
    if inner is None or scales is None or zero is None or np.any(zero):
        return None
    if inner.values.dtype != np.int8:
        return None
    axis = int(call.attrs.axis) % inner.values.ndim
    return Stored(inner.values, scales.astype("float32"), axis)
