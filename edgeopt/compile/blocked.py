"""Codes with a scale per block: what the importer calls them, and their lowering to kernels."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax, te, tirx

from edgeopt.compile.kernels import blocked
from edgeopt.compile.kernels.blocked import Blocked
from edgeopt.compile.site import Site
from edgeopt.compile.views import (
    constant_of,
    inside_permute,
    operator_of,
    permutation_of,
    shape_of,
)

#: (options, codes, scales, zero points): the codes' float32 numbers. Scales have the codes' rank:
#: along one axis one per block, along the others one for each or one for all; zero points too.
DECODE = "edgeopt.decode_blocks"


def call_decode(
    codes: relax.Expr, scales: relax.Expr, zeros: relax.Expr, *, axis: int, block: int
) -> relax.Call:
    """Call what decodes blocks of so many elements along an axis."""
    options = tvm.ir.StringImm(json.dumps({"axis": axis, "block": block}))
    result = relax.TensorType(shape_of(codes), "float32")
    return relax.op.call_pure_packed(DECODE, options, codes, scales, zeros, ty_args=[result])


@dataclass(frozen=True, slots=True)
class _Constant:
    """Constant codes from 0 on, with scales and zero points of their rank."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    axis: int
    block: int

    def transposed(self, axes: tuple[int, ...]) -> "_Constant":
        """Permute the axes."""
        parts = (each.transpose(axes) for each in (self.codes, self.scales, self.zeros))
        return _Constant(*parts, axis=axes.index(self.axis), block=self.block)


def _read(call: relax.Call) -> _Constant | None:
    """Read constant operands, moved so that the least code is 0."""
    _, options, codes, scales, zeros = call.args
    values = [constant_of(each) for each in (codes, scales, zeros)]
    if any(value is None for value in values):
        return None
    stored, factors, middles = values
    assert stored is not None and factors is not None and middles is not None
    facts = json.loads(str(options.value))
    least = int(stored.min())
    moved = (stored.astype(np.int32) - least).astype(np.uint8)
    if np.issubdtype(middles.dtype, np.integer):
        middles = middles.astype(np.int32) - least
        if middles.size and np.all(middles == middles.reshape(-1)[0]):
            middles = np.full([1] * stored.ndim, middles.reshape(-1)[0], np.float32)
        elif middles.min() >= 0 and middles.max() < 256:
            middles = middles.astype(np.uint8)
        else:
            middles = middles.astype(np.int16)
    else:
        middles = middles - np.asarray(least, middles.dtype)
    return _Constant(moved, factors, middles, facts["axis"], facts["block"])


def matrix_of(site: Site, expr: relax.Expr) -> Blocked | None:
    """Follow transposes to a constant matrix [K, N] whose blocks lie along K."""
    bound = site.bound(expr)
    inner = inside_permute(bound)
    axes = (0, 1)
    if inner is not None:
        axes = permutation_of(bound)
        bound = site.bound(inner)
    if operator_of(bound) != DECODE or len(shape_of(bound)) != 2:
        return None
    stored = _read(bound)
    if stored is None:
        return None
    stored = stored.transposed(axes)
    depth, columns = stored.codes.shape
    block = depth
    if stored.axis == 0:
        block = stored.block
    elif stored.scales.shape[0] != 1 or stored.zeros.shape[0] != 1:
        return None
    bits = blocked.bits_of(stored.codes)
    if block < depth and block % (32 // bits):
        return None
    count = -(-depth // block)

    def spread(values: np.ndarray) -> np.ndarray:
        if stored.axis == 1 and values.shape[1] > 1:
            values = np.repeat(values, stored.block, axis=1)[:, :columns]
        return np.ascontiguousarray(np.broadcast_to(values, (count, columns)))

    zeros = stored.zeros if stored.zeros.size == 1 else spread(stored.zeros)
    return Blocked(stored.codes, spread(stored.scales), zeros, block, bits)


def multiply_blocked(
    site: Site, left: relax.Expr, weight: Blocked, shape: tuple[int, ...]
) -> relax.Expr:
    """Emit x @ W with W packed in words."""
    if len(shape_of(left)) == 1:
        left = site.reshape(left, (1, *shape_of(left)))
    plan = blocked.plan_blocked(site.cpu, shape_of(left), shape[-1])
    arguments = blocked.arguments_of(weight, plan.width)
    define = blocked.define_blocked(site.cpu, plan, weight)
    return site.reshape(site.call(define, left, *arguments, name="blocked"), shape)


def take_blocked(site: Site, data: relax.Expr, indices: relax.Expr) -> relax.Expr | None:
    """Emit rows of a packed table; None where the data are something else."""
    bound = site.bound(data)
    stored = _read(bound) if operator_of(bound) == DECODE else None
    if stored is None:
        return None
    bits = blocked.bits_of(stored.codes)
    table = blocked.pack_rows(stored.codes, bits)
    define = blocked.define_decoded(
        stored.codes.shape, _finder(stored.axis, stored.block), bits
    )
    return site.call(define, table, stored.scales, stored.zeros, indices, name="gather")


def _finder(axis: int, block: int) -> blocked.Finder:
    def find(values: te.Tensor, at: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        moved = [tirx.floordiv(i, block) if place == axis else i for place, i in enumerate(at)]
        sizes = [int(size) for size in values.shape]
        return [0 if size == 1 else i for size, i in zip(sizes, moved, strict=True)]

    return find


def lower_decode(site: Site, call: relax.Call) -> relax.Expr:
    """Decode elements one by one: what no kernel took as a weight."""
    _, options, codes, scales, zeros = call.args
    facts = json.loads(str(options.value))
    find = _finder(facts["axis"], facts["block"])

    def define(codes: te.Tensor, scales: te.Tensor, zeros: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            zero, scale = zeros(*find(zeros, at)), scales(*find(scales, at))
            steps = tirx.Cast("float32", codes(*at)) - tirx.Cast("float32", zero)
            return steps * tirx.Cast("float32", scale)

        return te.compute(codes.shape, element, name="decode")

    return site.call(define, codes, scales, zeros, name="decode")
