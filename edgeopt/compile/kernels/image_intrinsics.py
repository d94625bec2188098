# mypy: ignore-errors
"""Tiles of convolutions in assembly, which read the image itself, as instructions of a schedule."""

from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812

from edgeopt.compile.kernels import script
from edgeopt.compile.kernels.amx_image import ImageTile
from edgeopt.compile.kernels.amx_tile import STEP


@cache
def register_image_start(lines: int, columns: int, width: int) -> str:
    """Make known the start of a tile, which takes no code: the tile's own function overwrites C.

    Returns the name of the intrinsic.
    """

    @script.prim_func(s_tir=True)
    def meaning(pc: T.handle) -> None:
        line, row = T.int32(), T.int32()
        c = T.match_buffer(
            pc, (lines, columns, width), "int32", strides=[line, row, 1], offset_factor=1
        )
        with T.sblock("root"):
            T.reads()
            T.writes(c[0:lines, 0:columns, 0:width])
            for i, j, n in T.grid(lines, columns, width):
                with T.sblock("start"):
                    vi, vj, vn = T.axis.remap("SSS", [i, j, n])
                    c[vi, vj, vn] = 0

    @script.prim_func(s_tir=True)
    def code(pc: T.handle) -> None:
        line, row = T.int32(), T.int32()
        c = T.match_buffer(
            pc, (lines, columns, width), "int32", strides=[line, row, 1], offset_factor=1
        )
        with T.sblock("root"):
            T.reads()
            T.writes(c[0:lines, 0:columns, 0:width])
            T.evaluate(0)

    intrinsic = f"edgeopt_image_start_{lines}x{columns}x{width}"
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic


@cache
def register_image_tile(tile: ImageTile) -> str:
    """Make the function of a tile known to schedules: C[line, pixel, n] sums what lies under taps.

    A is the image's lines as they lie in memory, of which pixels overlap; B is
    [taps, run / 4, width, 4]. C, whose start is register_image_start's, is overwritten. Returns
    the name of the intrinsic.
    """
    name, dtype, taps, pixel = tile.name, tile.dtype, tile.taps, tile.pixel
    lines, columns, width, length = tile.lines, tile.columns, tile.width, tile.steps * STEP
    down, apart = tile.apart
    read = (lines - 1) * down + (taps - 1) * apart + 1
    span = (columns - 1) * pixel + length

    @script.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_a, line, row = T.int32(), T.int32(), T.int32()
        a = T.match_buffer(pa, (read, span), dtype, strides=[stride_a, 1], offset_factor=1)
        b = T.match_buffer(pb, (taps, length // 4, width, 4), "int8", offset_factor=1)
        c = T.match_buffer(
            pc, (lines, columns, width), "int32", strides=[line, row, 1], offset_factor=1
        )
        with T.sblock("root"):
            T.reads(
                c[0:lines, 0:columns, 0:width],
                a[0:read, 0:span],
                b[0:taps, 0 : length // 4, 0:width, 0:4],
            )
            T.writes(c[0:lines, 0:columns, 0:width])
            for i, j, n, r, k in T.grid(lines, columns, width, taps, length):
                with T.sblock("update"):
                    vi, vj, vn, vr, vk = T.axis.remap("SSSRR", [i, j, n, r, k])
                    c[vi, vj, vn] = c[vi, vj, vn] + T.cast(
                        a[vi * down + vr * apart, vj * pixel + vk], "int32"
                    ) * T.cast(b[vr, vk // 4, vn, vk % 4], "int32")

    @script.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_a, line, row = T.int32(), T.int32(), T.int32()
        a = T.match_buffer(pa, (read, span), dtype, strides=[stride_a, 1], offset_factor=1)
        b = T.match_buffer(pb, (taps, length // 4, width, 4), "int8", offset_factor=1)
        c = T.match_buffer(
            pc, (lines, columns, width), "int32", strides=[line, row, 1], offset_factor=1
        )
        with T.sblock("root"):
            T.reads(
                c[0:lines, 0:columns, 0:width],
                a[0:read, 0:span],
                b[0:taps, 0 : length // 4, 0:width, 0:4],
            )
            T.writes(c[0:lines, 0:columns, 0:width])
            T.evaluate(
                T.call_extern(
                    "int32", name, a.access_ptr("r"), b.access_ptr("r"), c.access_ptr("w")
                )
            )

    TensorIntrin.register(name, meaning, code, override=True)
    return name
