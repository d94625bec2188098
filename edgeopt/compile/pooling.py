"""Pools and Resize to kernels that store channels last."""

import numpy as np
from tvm import relax

from edgeopt.compile.import_vision import Axis, read_axes
from edgeopt.compile.kernels import conv, resize
from edgeopt.compile.kernels.conv import Window
from edgeopt.compile.recode import pick_codes, pool_maximum, pool_sum
from edgeopt.compile.site import Site
from edgeopt.compile.views import constant_of, shape_of


def lower_max_pool(site: Site, call: relax.Call) -> relax.Expr:
    """Lower a maximum over windows of [N, C, ...]."""
    _, image, geometry = call.args
    result = _pool(site, image, read_axes(geometry), shape_of(call)[2:], conv.MAXIMUM)
    return _channels_first(site, result)


def lower_average_pool(site: Site, call: relax.Call) -> relax.Expr:
    """Lower a mean over windows of [N, C, ...]: a sum, and how many elements each one counts."""
    _, image, geometry, included = call.args
    axes, outputs = read_axes(geometry), shape_of(call)[2:]
    counts = np.ones((), np.float64)
    for axis, size, length in zip(axes, shape_of(image)[2:], outputs, strict=True):
        each = _counted(axis, size, length, padding=bool(constant_of(included)))
        counts = counts[..., None] * each
    total = _pool(site, image, axes, outputs, conv.SUM)
    inverse = (1.0 / counts).astype(np.float32)[..., None]
    if (inverse == inverse.reshape(-1)[0]).all():
        inverse = inverse.reshape(-1)[0]
    return _channels_first(site, site.emit(relax.op.multiply(total, relax.const(inverse))))


def _channels_first(site: Site, result: relax.Expr) -> relax.Expr:
    rank = len(shape_of(result))
    return site.permute(result, (0, rank - 1, *range(1, rank - 1)))


def _counted(axis: Axis, size: int, length: int, *, padding: bool) -> np.ndarray:
    """Count the elements under each window; those beyond the padding never count."""
    first = np.arange(length) * axis.stride - axis.before
    taps = first[:, None] + np.arange(axis.kernel)[None] * axis.dilation
    low, high = (-axis.before, size + axis.after) if padding else (0, size)
    inside = (taps >= low) & (taps < high)
    counted: np.ndarray = np.maximum(inside.sum(axis=1), 1).astype(np.float64)
    return counted


def _pool(
    site: Site,
    image: relax.Expr,
    axes: tuple[Axis, ...],
    outputs: tuple[int, ...],
    kind: str,
) -> relax.Expr:
    """Join the values of windows, channels last: two axes at a time, as kernels have two."""
    shape = shape_of(image)
    rank = len(axes)
    last = site.permute(image, (0, *range(2, rank + 2), 1))
    batch, channels = shape[0], shape[1]
    if rank == 1:
        flat = site.reshape(last, (batch, 1, shape[2], channels))
        result = _join(site, flat, (_still(), axes[0]), (1, outputs[0]), kind)
    elif rank == 2:
        result = _join(site, last, (axes[0], axes[1]), (outputs[0], outputs[1]), kind)
    else:
        depth, across = shape[2], outputs[1:]
        flat = site.reshape(last, (batch * depth, *shape[3:], channels))
        flat = _join(site, flat, (axes[1], axes[2]), (across[0], across[1]), kind)
        area = across[0] * across[1]
        flat = site.reshape(flat, (batch, depth, area, channels))
        result = _join(site, flat, (axes[0], _still()), (outputs[0], area), kind)
    return site.reshape(result, (batch, *outputs, channels))


def _still() -> Axis:
    """Make the window of an axis that is not pooled."""
    return Axis(kernel=1, stride=1, before=0, after=0, dilation=1)


def _join(
    site: Site,
    image: relax.Expr,
    axes: tuple[Axis, Axis],
    outputs: tuple[int, int],
    kind: str,
) -> relax.Expr:
    shape = shape_of(image)
    # Rounding up lets the last windows reach beyond the padding.
    after = [
        max(0, (length - 1) * axis.stride + axis.span - size - axis.before)
        for axis, length, size in zip(axes, outputs, shape[1:3], strict=True)
    ]
    window = Window(
        shape=shape,
        kernel=(axes[0].kernel, axes[1].kernel),
        strides=(axes[0].stride, axes[1].stride),
        pads=(axes[0].before, axes[1].before, after[0], after[1]),
        dilation=(axes[0].dilation, axes[1].dilation),
        size=outputs,
    )
    coded = (pool_maximum if kind == conv.MAXIMUM else pool_sum)(site, image, window)
    if coded is not None:
        return coded
    define = conv.define_pool(site.cpu, window, kind)
    return site.call(define, image, name=f"{kind}_pool")


def lower_resize(site: Site, call: relax.Call) -> relax.Expr:
    """Lower Resize of [N, C, ...] by the tables of its spatial axes."""
    _, image, *constants = call.args
    values = [constant_of(each) for each in constants]
    tables = [each for each in values if each is not None]
    rank = len(shape_of(image)) - 2
    last = site.permute(image, (0, *range(2, rank + 2), 1))
    define = resize.define_resize(tables)
    picked = pick_codes(site, last, define, tables)
    if picked is not None:
        return _channels_first(site, picked)
    return _channels_first(site, site.call(define, last, *tables, name="resize"))
