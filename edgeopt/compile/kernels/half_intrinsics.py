# mypy: ignore-errors
"""What a product of halves is made of, as instructions of a schedule."""

from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812

from edgeopt.compile.kernels import script
from edgeopt.compile.kernels.tile_intrinsics import column_of

_LANES = 8


@cache
def register_half_tile(name: str, height: int, width: int, depth: int) -> str:
    """Make a function name(A, B, C, K) known to schedules: C[height, width] = A^T B.

    A is float16 [depth, vectors, 8] and B float16 [depth, width]; C is float32, and is overwritten.
    Returns the name of the intrinsic.
    """
    vectors = -(-height // _LANES)

    @script.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_c = T.int32()
        a = T.match_buffer(pa, (depth, vectors, 8), "float16", offset_factor=1)
        b = T.match_buffer(pb, (depth, width), "float16", offset_factor=1)
        c = T.match_buffer(pc, (height, width), "float32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(c[0:height, 0:width], a[0:depth, 0:vectors, 0:8], b[0:depth, 0:width])
            T.writes(c[0:height, 0:width])
            for i, j, k in T.grid(height, width, depth):
                with T.sblock("update"):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    c[vi, vj] = c[vi, vj] + T.cast(a[vk, vi // 8, vi % 8], "float32") * T.cast(
                        b[vk, vj], "float32"
                    )

    @script.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_c = T.int32()
        a = T.match_buffer(pa, (depth, vectors, 8), "float16", offset_factor=1)
        b = T.match_buffer(pb, (depth, width), "float16", offset_factor=1)
        c = T.match_buffer(pc, (height, width), "float32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(c[0:height, 0:width], a[0:depth, 0:vectors, 0:8], b[0:depth, 0:width])
            T.writes(c[0:height, 0:width])
            T.evaluate(
                T.call_extern(
                    "int32",
                    name,
                    a.access_ptr("r"),
                    b.access_ptr("r"),
                    c.access_ptr("w"),
                    T.int64(depth),
                )
            )

    intrinsic = f"{name}_{depth}"
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic


@cache
def register_half_transpose() -> str:
    """Make the transpose of 8 x 8 halves known to schedules: B[k, 0, row] = A[row, k].

    Both are read and written as vectors, which LLVM zips. Returns the name of the intrinsic.
    """

    @T.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle) -> None:
        stride_a, stride_b, stride_v = T.int32(), T.int32(), T.int32()
        a = T.match_buffer(pa, (8, 8), "float16", strides=[stride_a, 1], offset_factor=1)
        b = T.match_buffer(
            pb, (8, 1, 8), "float16", strides=[stride_b, stride_v, 1], offset_factor=1
        )
        with T.sblock("root"):
            T.reads(a[0:8, 0:8])
            T.writes(b[0:8, 0:1, 0:8])
            for k, row in T.grid(8, 8):
                with T.sblock("transpose"):
                    vk, vr = T.axis.remap("SS", [k, row])
                    b[vk, 0, vr] = a[vr, vk]

    @T.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle) -> None:
        stride_a, stride_b, stride_v = T.int32(), T.int32(), T.int32()
        a = T.match_buffer(pa, (8, 8), "float16", strides=[stride_a, 1], offset_factor=1)
        b = T.match_buffer(
            pb, (8, 1, 8), "float16", strides=[stride_b, stride_v, 1], offset_factor=1
        )
        with T.sblock("root"):
            T.reads(a[0:8, 0:8])
            T.writes(b[0:8, 0:1, 0:8])
            b.vstore([0, 0, 0], column_of(a, 0))
            b.vstore([1, 0, 0], column_of(a, 1))
            b.vstore([2, 0, 0], column_of(a, 2))
            b.vstore([3, 0, 0], column_of(a, 3))
            b.vstore([4, 0, 0], column_of(a, 4))
            b.vstore([5, 0, 0], column_of(a, 5))
            b.vstore([6, 0, 0], column_of(a, 6))
            b.vstore([7, 0, 0], column_of(a, 7))

    TensorIntrin.register("edgeopt_half_transpose", meaning, code, override=True)
    return "edgeopt_half_transpose"
