# mypy: ignore-errors
"""What a window of many taps is made of, as an instruction of a schedule."""

from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812

from edgeopt.compile.kernels import script
from edgeopt.compile.kernels.microkernel import TURN


@cache
def register_taps(count: int, lanes: int, dtype: str) -> str:
    """Make known how weights [1, count, 1, lanes] of one line of a window come into registers.

    LLVM neither unrolls the loop over lines around it nor loads all lines before a loop over tiles.
    Returns the name of the intrinsic.
    """

    @script.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle) -> None:
        line_a, tap_a, one_a = T.int32(), T.int32(), T.int32()
        line_b, tap_b, one_b = T.int32(), T.int32(), T.int32()
        a = T.match_buffer(
            pa, (1, count, 1, lanes), dtype, strides=[line_a, tap_a, one_a, 1], offset_factor=1
        )
        b = T.match_buffer(
            pb, (1, count, 1, lanes), dtype, strides=[line_b, tap_b, one_b, 1], offset_factor=1
        )
        with T.sblock("root"):
            T.reads(a[0:1, 0:count, 0:1, 0:lanes])
            T.writes(b[0:1, 0:count, 0:1, 0:lanes])
            for tap, lane in T.grid(count, lanes):
                with T.sblock("copy"):
                    vi, vl = T.axis.remap("SS", [tap, lane])
                    b[0, vi, 0, vl] = a[0, vi, 0, vl]

    @script.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle) -> None:
        line_a, tap_a, one_a = T.int32(), T.int32(), T.int32()
        line_b, tap_b, one_b = T.int32(), T.int32(), T.int32()
        a = T.match_buffer(
            pa, (1, count, 1, lanes), dtype, strides=[line_a, tap_a, one_a, 1], offset_factor=1
        )
        b = T.match_buffer(
            pb, (1, count, 1, lanes), dtype, strides=[line_b, tap_b, one_b, 1], offset_factor=1
        )
        with T.sblock("root"):
            T.reads(a[0:1, 0:count, 0:1, 0:lanes])
            T.writes(b[0:1, 0:count, 0:1, 0:lanes])
            T.evaluate(T.call_extern("int32", TURN))
            for tap in T.unroll(count):
                b[0, tap, 0, T.ramp(T.int32(0), 1, lanes)] = a[
                    0, tap, 0, T.ramp(T.int32(0), 1, lanes)
                ]

    intrinsic = f"edgeopt_taps_{dtype}_{count}x{lanes}"
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic
