"""Dense convolutions of codes as products whose rows are packed from the image."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import code_products, tile
from edgeopt.compile.kernels.code_products import CodeProduct
from edgeopt.compile.kernels.code_runs import Runs, pad_filters, pad_lines
from edgeopt.compile.kernels.conv import UNFOLDED, Window
from edgeopt.compile.kernels.scheduling import mark


@dataclass(frozen=True, slots=True)
class CodeConv:
    """A dense convolution of codes: the runs that it reads, and the product that they make."""

    runs: Runs
    product: CodeProduct
    #: Whether the rows of all lines of the image are tiled as one.
    flat: bool = False

    @property
    def moved(self) -> int:
        """What the conversion of codes adds to each, and the zero point must gain."""
        return self.product.moved


def plan_conv(cpu: Cpu, window: Window, filters: np.ndarray, codes: str) -> CodeConv | None:
    """Choose the tile for int8 filters [KH, KW, I, O].

    None where the CPU has no tile for it, or none divides a group's outputs.
    """
    runs = Runs(window, code_products.step_of(cpu), cpu.amx)
    weight = pad_filters(filters, runs)
    lines, columns = window.output
    flat = cpu.amx and window.groups == 1 and code_products.prefers_flat(lines, columns)
    rows = (lines * columns,) if flat else (lines, columns)
    shape = (window.shape[0], *rows, runs.depth)
    product = code_products.plan_product(cpu, shape, weight, codes, groups=window.groups)
    return None if product is None else CodeConv(runs, product, flat)


def pack_filters(filters: np.ndarray, plan: CodeConv) -> np.ndarray:
    """Lay out int8 [KH, KW, I, O] as the tile reads it."""
    return code_products.pack_weight(pad_filters(filters, plan.runs), plan.product)


def define_conv(plan: CodeConv, zero: int) -> Callable[..., te.Tensor]:
    """Make the TE definition: codes [N, H, W * C], packed filters, what each output starts from."""
    gemm = plan.product.gemm
    multiply = code_products.define_product(plan.product)

    def define(x: te.Tensor, weight: te.Tensor, start: te.Tensor) -> te.Tensor:
        product = multiply(_unfold(plan, x, zero), weight)

        def result(*at: tirx.Expr) -> tirx.Expr:
            outer = [at[axis] for axis in gemm.outer_axes]
            place = (at[gemm.row_axis], at[-1])
            return tile.untile(product, outer, place, (gemm.height, gemm.width)) + start(at[-1])

        return te.compute(gemm.output_shape, result, name="integer_conv")

    return define


def _unfold(plan: CodeConv, x: te.Tensor, zero: int) -> te.Tensor:
    """Define the codes that each output sums: [N, H, W, codes], by groups before the codes.

    Flat, H and W are one axis. It is never stored: the kernel reads it once, packing the rows of
    the product.
    """
    runs = plan.runs
    window = runs.window
    image = pad_lines(runs, x, zero, plan.product.convert) if runs.copied else x
    across = window.output[1]

    def element(*at: tirx.Expr) -> tirx.Expr:
        batch, *place, k = at
        if plan.flat:
            place = [tirx.floordiv(place[0], across), tirx.floormod(place[0], across)]
        return runs.read(image, (batch, *place), k)

    groups = [window.groups] if window.groups > 1 else []
    shape = (*plan.product.gemm.shape[:-1], *groups, runs.depth)
    marks = mark(role=UNFOLDED, inputs=runs.length // plan.product.tile.step, across=runs.taps[1])
    return te.compute(shape, element, name=UNFOLDED, attrs=marks)
