"""Operators between DequantizeLinear and QuantizeLinear, on the codes."""

from collections.abc import Callable

import numpy as np
from tvm import relax, te

from edgeopt.compile.encoding import Decoded, Encoding, decoded_of
from edgeopt.compile.kernels import conv, elementwise
from edgeopt.compile.kernels.conv import Window
from edgeopt.compile.requantize import limits_under, note_sum
from edgeopt.compile.site import IntegerSum, Site
from edgeopt.compile.views import operator_of, shape_of


def pass_codes(site: Site, expr: relax.Expr, wanted: Encoding) -> relax.Expr | None:
    """Take codes as they are where they were only decoded to be encoded in the same way."""
    decoded = decoded_of(site, expr)
    return decoded.codes if decoded is not None and decoded.encoding == wanted else None


def add_codes(site: Site, expr: relax.Expr, wanted: Encoding) -> relax.Expr | None:
    """Encode the sum of two decoded operands, or one of them, limited or not, in one step."""
    limits, bound = limits_under(site, expr, wanted)
    operands = bound.args if operator_of(bound) == "relax.add" else [bound]
    terms = [decoded_of(site, each) for each in operands]
    shape = shape_of(bound)
    found = [each for each in terms if each is not None and shape_of(each.codes) == shape]
    if len(found) != len(operands):
        return None
    return site.reshape(_combine(site, found, wanted, limits), shape_of(expr))


def _combine(
    site: Site, terms: list[Decoded], wanted: Encoding, limits: tuple[int, int]
) -> relax.Var:
    ratios = [each.encoding.scale / wanted.scale for each in terms]
    zeros = [each.encoding.zero for each in terms]
    fixed = wanted.zero - sum(r * zero for r, zero in zip(ratios, zeros, strict=True))
    numbers = np.array([*ratios, fixed], np.float32)
    define = elementwise.define_combination(wanted.dtype, limits)
    return site.call(define, numbers, *(each.codes for each in terms), name="add_codes")


def join_codes(site: Site, expr: relax.Expr, wanted: Encoding) -> relax.Expr | None:
    """Encode the parts of a concatenation, each where it is made, instead of the whole."""
    bound = site.bound(expr)
    if operator_of(bound) != "relax.concat":
        return None
    parts = bound.args[0]
    parts = site.bound(parts) if isinstance(parts, relax.Var) else parts
    if not isinstance(parts, relax.Tuple) or bound.attrs.axis is None:
        return None
    codes = []
    for part in parts.fields:
        same = pass_codes(site, part, wanted)
        code = add_codes(site, part, wanted) if same is None else same
        if code is None:
            return None
        codes.append(code)
    return site.emit(relax.op.concat(codes, axis=int(bound.attrs.axis)))


def pool_maximum(site: Site, image: relax.Expr, window: Window) -> relax.Expr | None:
    """Pool decoded codes [N, H, W, C] as they are: the greatest number has the greatest code."""
    decoded = decoded_of(site, image)
    if decoded is None:
        return None
    define = conv.define_pool(site.cpu, window, conv.MAXIMUM)
    codes = site.call(define, decoded.codes, name="max_pool_codes")
    return decoded.encoding.decode(site, codes)


def pool_sum(
    site: Site, image: relax.Expr, window: Window, factor: float = 1.0
) -> relax.Expr | None:
    """Sum decoded codes [N, H, W, C] over windows, times a factor."""
    decoded = decoded_of(site, image)
    if decoded is None:
        return None
    encoding, channels = decoded.encoding, window.shape[3]
    define = conv.define_code_sum(site.cpu, window, encoding.zero)

    def emit(start: np.ndarray) -> relax.Var:
        return site.call(define, decoded.codes, start, name="sum_pool_codes")

    taps = window.kernel[0] * window.kernel[1]
    start = np.full(channels, -encoding.zero * taps, np.int32)
    scale = np.full(channels, encoding.scale * np.float32(factor), np.float32)
    shape = (window.shape[0], *window.output, channels)
    return note_sum(site, IntegerSum(start, scale, emit), shape)


def average_rows(site: Site, image: relax.Expr, shape: tuple[int, int, int]) -> relax.Expr | None:
    """Average decoded codes [outer, reduced, inner], seen as such, over the second axis."""
    if decoded_of(site, image) is None:
        return None
    outer, reduced, inner = shape
    window = Window(
        shape=(outer, 1, reduced, inner), kernel=(1, reduced), strides=(1, 1), pads=(0, 0, 0, 0)
    )
    return pool_sum(site, site.reshape(image, window.shape), window, 1.0 / reduced)


def lower_slice(site: Site, call: relax.Call) -> relax.Expr | None:
    """Slice decoded codes as they are."""
    decoded = decoded_of(site, call.args[0])
    if decoded is None:
        return None
    moved = relax.Call(call.op, [decoded.codes, *call.args[1:]], call.attrs, call.ty_args)
    return decoded.encoding.decode(site, site.emit(moved))


def lower_split(site: Site, call: relax.Call) -> relax.Expr | None:
    """Split decoded codes as they are."""
    decoded = decoded_of(site, call.args[0])
    if decoded is None:
        return None
    moved = relax.Call(call.op, [decoded.codes], call.attrs, call.ty_args)
    parts = site.emit(moved)
    count = len(call.ty.fields)
    codes = [site.emit(relax.TupleGetItem(parts, place)) for place in range(count)]
    return relax.Tuple([decoded.encoding.decode(site, each) for each in codes])


def pick_codes(
    site: Site, image: relax.Expr, define: Callable[..., te.Tensor], tables: list[np.ndarray]
) -> relax.Expr | None:
    """Resize decoded codes by tables that choose one element each."""
    decoded = decoded_of(site, image)
    if decoded is None or any(table.shape[1] > 1 for table in tables):
        return None
    codes = site.call(define, decoded.codes, *tables, name="resize_codes")
    return decoded.encoding.decode(site, codes)
