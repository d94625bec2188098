"""Codes with a scale per block: what the importer calls them, and their lowering to kernels."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tvm
from tvm import relax, te, tirx

from edgeopt.compile.kernels import blocked
from edgeopt.compile.kernels.blocked import Blocked
from edgeopt.compile.site import Site
from edgeopt.compile.stored import stored_of
from edgeopt.compile.table_reads import note_table
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
#: (codes, levels, first): what codes from 0 on stand for; first has the codes' rank: the place of
#: the level of code 0, one for all or one for each along an axis.
LOOK_UP = "edgeopt.look_up"
#: Levels of one group that kernels choose from: as many as a byte can tell apart.
_MOST_LEVELS = 256
#: Bits of codes whose levels are read one by one.
_BYTE = 8
#: What codes of one bit stand for.
_SIGNS = np.array([-1, 1], np.int8)


def call_decode(
    codes: relax.Expr, scales: relax.Expr, zeros: relax.Expr, *, axis: int, block: int
) -> relax.Call:
    """Call what decodes blocks of so many elements along an axis."""
    options = tvm.ir.StringImm(json.dumps({"axis": axis, "block": block}))
    result = relax.TensorType(shape_of(codes), "float32")
    return relax.op.call_pure_packed(DECODE, options, codes, scales, zeros, ty_args=[result])


def call_look_up(codes: relax.Expr, levels: relax.Expr, first: relax.Expr) -> relax.Call:
    """Call what gives the levels [n] that constant codes stand for, in the levels' type."""
    result = relax.TensorType(shape_of(codes), levels.ty.dtype.dtype)
    return relax.op.call_pure_packed(LOOK_UP, codes, levels, first, ty_args=[result])


def stored_places(
    builder: relax.BlockBuilder, expr: relax.Expr | None
) -> tuple[relax.Expr, relax.Expr] | None:
    """Find stored codes, and the first place of each of them, in the places of levels."""
    bound = builder.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
    first = None
    if bound is not None and operator_of(bound) == "relax.add":
        expr, first = bound.args[0], constant_of(bound.args[1])
    codes = stored_codes(builder, expr)
    if codes is None or (first is None and operator_of(bound) == "relax.add"):
        return None
    if first is None:
        first = np.zeros([1] * len(shape_of(codes)), np.int32)
    if first.ndim != len(shape_of(codes)):
        return None
    return codes, relax.const(first.astype(np.int32), "int32")


def stored_codes(builder: relax.BlockBuilder, expr: relax.Expr | None) -> relax.Expr | None:
    """Follow casts to a stored constant of small unsigned integers; None where there is none."""
    while expr is not None and constant_of(expr) is None:
        bound = builder.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
        expr = bound.args[0] if operator_of(bound) == "relax.astype" else None
    value = None if expr is None else constant_of(expr)
    return expr if value is not None and value.dtype == np.uint8 else None


def stored_levels(builder: relax.BlockBuilder, expr: relax.Expr | None) -> relax.Expr | None:
    """Widen stored levels [n] behind a cast, of which there are few beside their codes."""
    bound = builder.lookup_binding(expr) if isinstance(expr, relax.Var) else expr
    if bound is None or operator_of(bound) != "relax.astype" or len(shape_of(bound)) != 1:
        return expr
    value, wanted = constant_of(bound.args[0]), bound.ty.dtype.dtype
    return expr if value is None else relax.const(value.astype(wanted), wanted)


def spell_out(codes: relax.Expr, first: relax.Expr, table: np.ndarray) -> relax.Expr:
    """Write the small codes [n] that bytes stand for: kernels pack them again, as bits."""
    places, start = constant_of(codes), constant_of(first)
    assert places is not None
    assert start is not None
    return relax.const(np.ascontiguousarray(table[places + start]), table.dtype.name)


@dataclass(frozen=True, slots=True)
class _Constant:
    """Constant codes from 0 on, with scales and zero points of their rank, and levels if any."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    axis: int
    block: int
    #: [groups, n], where groups are of so many neighbours along the axis of the result.
    levels: np.ndarray | None = None
    channels: int = 0

    @property
    def bits(self) -> int:
        """Bits of a code: one where there are two levels."""
        if self.levels is not None and self.levels.shape[1] == len(_SIGNS):
            return 1
        return blocked.bits_of(self.codes)

    def transposed(self, axes: tuple[int, ...]) -> "_Constant":
        """Permute the axes."""
        codes, scales, zeros = (
            each.transpose(axes) for each in (self.codes, self.scales, self.zeros)
        )
        axis = axes.index(self.axis)
        return replace(self, codes=codes, scales=scales, zeros=zeros, axis=axis)


def _read(site: Site, call: relax.Call) -> _Constant | None:
    """Read constant operands, moved so that the least code is 0; scales in half where exact."""
    _, options, codes_of, scales_of, zeros_of = call.args
    found = site.bound(codes_of)
    codes, stored, zeros = constant_of(codes_of), stored_of(site, scales_of), constant_of(zeros_of)
    levels = None
    if operator_of(found) == LOOK_UP:
        codes, levels, first = (constant_of(each) for each in found.args[1:])
        if first is None or first.any():
            return None
    elif codes is None:
        under = stored_of(site, codes_of)
        codes = None if under is None or under.scales is not None else under.values
    if codes is None or stored is None or stored.scales is not None or zeros is None:
        return None
    scales = _halved(stored.values)
    facts = json.loads(str(options.value))
    if levels is not None:
        return _with_levels(codes, levels, scales, zeros, facts)
    if not zeros.any() and _are_signs(codes):
        none = np.zeros([1] * codes.ndim, np.float32)
        bits = (codes > 0).astype(np.uint8)
        levels = _SIGNS.astype(np.float32)[None]
        return _Constant(bits, scales, none, facts["axis"], facts["block"], levels)
    least = int(codes.min())
    moved = (codes.astype(np.int32) - least).astype(np.uint8)
    return _Constant(moved, scales, _move_zeros(zeros, least), facts["axis"], facts["block"])


def _are_signs(codes: np.ndarray) -> bool:
    return codes.dtype == np.int8 and np.array_equal(np.unique(codes), _SIGNS)


def _with_levels(
    codes: np.ndarray,
    levels: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    facts: Mapping[str, int],
) -> _Constant | None:
    """Read codes that stand for levels, which are multiplied by scales."""
    if zeros.any() or codes.min() < 0 or codes.max() >= min(len(levels), _MOST_LEVELS):
        return None
    none = np.zeros([1] * codes.ndim, np.float32)
    spread = _fill_levels(levels[None], codes)
    return _Constant(codes.astype(np.uint8), scales, none, facts["axis"], facts["block"], spread)


def _fill_levels(levels: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Give groups of levels [groups, n] as many as codes of few bits can tell apart."""
    bits = blocked.bits_of(codes)
    if bits == _BYTE:
        return np.ascontiguousarray(levels)
    count = 1 << bits
    spread = np.zeros((len(levels), count), np.float32)
    kept = levels[:, :count]
    spread[:, : kept.shape[1]] = kept
    return spread


def _read_look_up(call: relax.Call) -> _Constant | None:
    """Read codes that stand for levels alone, of a group of neighbours along an axis each."""
    codes, levels, first = (constant_of(each) for each in call.args[1:])
    if codes is None or levels is None or first is None:
        return None
    if levels.dtype != np.float32 or codes.ndim != 2:
        return None
    long = [axis for axis in range(2) if first.shape[axis] > 1]
    starts = first.reshape(-1)
    # What is a group of its own begins where the one before ends.
    begins = np.flatnonzero(np.diff(starts, prepend=-1))
    size = int(begins[1]) if len(begins) > 1 else 0
    entries = int(starts[size]) if size else len(levels)
    groups = -(-len(starts) // size) if size else 1
    even = np.arange(len(starts)) // max(size, 1) * entries
    if len(long) == 2 or (size and not np.array_equal(starts, even)):
        return None
    if codes.max() >= entries or entries > _MOST_LEVELS or groups * entries > len(levels):
        return None
    table = levels[: groups * entries].reshape(groups, entries)
    ones, none = np.ones((1, 1), np.float32), np.zeros((1, 1), np.float32)
    axis = 1 - long[0] if long else 0
    spread = _fill_levels(table, codes)
    return _Constant(codes, ones, none, axis, codes.shape[axis], spread, size)


def _read_affine(call: relax.Call) -> _Constant | None:
    """Read codes of 8 bits with zero points, one scale for all or one along an axis."""
    codes, scales, zeros = (constant_of(each) for each in call.args)
    if codes is None or scales is None or zeros is None or codes.ndim != 2 or not zeros.any():
        return None
    if codes.dtype not in (np.int8, np.uint8) or scales.dtype != np.float32:
        return None
    axis = int(call.attrs.axis) % 2
    shape = [1, 1] if scales.size == 1 else [-1, 1] if axis == 0 else [1, -1]
    shift = 128 if codes.dtype == np.int8 else 0
    moved = (codes.astype(np.int32) + shift).astype(np.uint8)
    middles = (zeros.astype(np.int32) + shift).astype(np.uint8).reshape(shape)
    along = 1 - axis
    return _Constant(moved, scales.reshape(shape), middles, along, codes.shape[along])


def read_constant(site: Site, bound: relax.Expr) -> _Constant | None:
    """Read what stands for numbers in few bits; None for anything else."""
    name = operator_of(bound)
    if name == DECODE:
        return _read(site, bound)
    if name == LOOK_UP:
        return _read_look_up(bound)
    return _read_affine(bound) if name == "relax.dequantize" else None


def _halved(scales: np.ndarray) -> np.ndarray:
    """Store scales in half precision where it holds them all: a cast may have widened them."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    return half if np.array_equal(half, scales) else scales


def _move_zeros(zeros: np.ndarray, least: int) -> np.ndarray:
    """Move zero points with their codes; one value for all is kept once, as a float."""
    if not np.issubdtype(zeros.dtype, np.integer):
        return (zeros.astype(np.float32) - np.float32(least)).astype(zeros.dtype)
    moved = zeros.astype(np.int32) - least
    first = moved.reshape(-1)[0]
    if np.all(moved == first):
        return np.full([1] * moved.ndim, first, np.float32)
    small = moved.min() >= 0 and moved.max() < 256
    return moved.astype(np.uint8 if small else np.int16)


def matrix_of(site: Site, expr: relax.Expr) -> Blocked | None:
    """Follow a transpose to a constant matrix [K, N] whose blocks lie along K."""
    bound = site.bound(expr)
    inner = inside_permute(bound)
    axes: tuple[int, ...] = (0, 1)
    if inner is not None:
        axes = permutation_of(bound)
        bound = site.bound(inner)
    stored = read_constant(site, bound)
    if stored is None or stored.codes.ndim != 2:
        return None
    return _as_columns(stored.transposed(axes))


def _as_columns(stored: _Constant) -> Blocked | None:
    """Arrange scales by block of K and column; None where rows of K differ within a word."""
    depth, columns = stored.codes.shape
    bits = stored.bits
    block = stored.block if stored.axis == 0 else depth
    by_row = stored.axis == 1 and (stored.scales.shape[0] > 1 or stored.zeros.shape[0] > 1)
    if by_row or (block < depth and block % (32 // bits)):
        return None
    count = -(-depth // block)

    def spread(values: np.ndarray) -> np.ndarray:
        if values.size == 1:
            return values
        if stored.axis == 1 and values.shape[1] > 1:
            values = np.repeat(values, stored.block, axis=1)[:, :columns]
        return np.ascontiguousarray(np.broadcast_to(values, (count, columns)))

    scales, zeros = spread(stored.scales), spread(stored.zeros)
    channels = stored.channels
    return Blocked(stored.codes, scales, zeros, block, bits, stored.levels, channels)


def multiply_blocked(
    site: Site, left: relax.Expr, weight: Blocked, shape: tuple[int, ...]
) -> relax.Expr:
    """Emit x @ W with W packed in words."""
    if len(shape_of(left)) == 1:
        left = site.reshape(left, (1, *shape_of(left)))
    plan = blocked.plan_blocked(site.cpu, shape_of(left), weight)
    arguments = blocked.arguments_of(weight, plan.width)
    define = blocked.define_blocked(site.cpu, plan, weight)
    return site.reshape(site.call(define, left, *arguments, name="blocked"), shape)


def take_blocked(site: Site, data: relax.Expr, indices: relax.Expr) -> relax.Expr | None:
    """Emit rows of a packed table; None where the data are something else."""
    bound = site.bound(data)
    stored = read_constant(site, bound)
    # A table has one group of levels: rows that share others would have to be told apart.
    if stored is None or stored.channels:
        return None
    bits = stored.bits
    table = blocked.pack_rows(stored.codes, bits)
    define = blocked.define_decoded(stored.codes.shape, _finder(stored.axis, stored.block), bits)
    note_table(site, table, indices)
    if stored.axis > 0:
        note_table(site, stored.scales, indices)
    levels = () if stored.levels is None else (stored.levels[0],)
    return site.call(define, table, stored.scales, stored.zeros, indices, *levels, name="gather")


def _finder(axis: int, block: int) -> blocked.Finder:
    def find(values: te.Tensor, at: Sequence[tirx.Expr]) -> list[tirx.Expr]:
        moved = [tirx.floordiv(i, block) if place == axis else i for place, i in enumerate(at)]
        sizes = [int(size) for size in values.shape]
        return [0 if size == 1 else i for size, i in zip(sizes, moved, strict=True)]

    return find


def lower_look_up(site: Site, call: relax.Call) -> relax.Expr:
    """Look levels up one by one: for what no kernel took as a weight."""
    _, codes, levels, first = call.args
    find = _finder(0, 1)

    def define(codes: te.Tensor, levels: te.Tensor, first: te.Tensor) -> te.Tensor:
        def element(*at: tirx.Expr) -> tirx.Expr:
            return levels(tirx.Cast("int32", codes(*at)) + first(*find(first, at)))

        return te.compute(codes.shape, element, name="look_up")

    return site.call(define, codes, levels, first, name="look_up")


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
