# mypy: ignore-errors
"""Dot products of int8 codes as instructions, in TVM's script language.

Each pair of functions says what is computed, and by which instructions: a vector of int32 sums,
one per column, gains the products of a few codes of one row with as many rows of B.
"""

from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812

from edgeopt.compile.kernels import script


@script.prim_func(s_tir=True)
def _pair_meaning(
    a: T.Buffer((4,), "int8", offset_factor=1),
    b: T.Buffer((2, 4, 2), "int8", offset_factor=1),
    c: T.Buffer((4,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(c[0:4], a[0:4], b[0:2, 0:4, 0:2])
        T.writes(c[0:4])
        for i, k in T.grid(4, 4):
            with T.sblock("update"):
                vi, vk = T.axis.remap("SR", [i, k])
                c[vi] = c[vi] + T.cast(a[vk], "int32") * T.cast(b[vk // 2, vi, vk % 2], "int32")


def _make_pair(intrinsic: str):
    """Multiply pairs to int16, add two such products, and add neighbours into int32.

    vmull, vmlal and vpadal on NEON. Two products of -128 by 127 still fit int16: weights are
    not -128 here.
    """

    @script.prim_func(s_tir=True)
    def code(
        a: T.Buffer((4,), "int8", offset_factor=1),
        b: T.Buffer((2, 4, 2), "int8", offset_factor=1),
        c: T.Buffer((4,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(c[0:4], a[0:4], b[0:2, 0:4, 0:2])
            T.writes(c[0:4])
            c[T.ramp(T.int32(0), 1, 4)] = c.vload([0], dtype="int32x4") + T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(intrinsic),
                T.Cast(
                    "int16x8",
                    T.reinterpret(
                        T.broadcast(T.reinterpret(a.vload([0], "int8x2"), dtype="int16"), 4),
                        dtype="int8x8",
                    ),
                )
                * T.Cast("int16x8", b.vload([0, 0, 0], dtype="int8x8"))
                + T.Cast(
                    "int16x8",
                    T.reinterpret(
                        T.broadcast(T.reinterpret(a.vload([2], "int8x2"), dtype="int16"), 4),
                        dtype="int8x8",
                    ),
                )
                * T.Cast("int16x8", b.vload([1, 0, 0], dtype="int8x8")),
                dtype="int32x4",
            )

    return code


def _make_single(intrinsic: str):
    """Multiply pairs to int16 and add neighbours into int32: two products of -128 do not fit."""

    @script.prim_func(s_tir=True)
    def code(
        a: T.Buffer((4,), "int8", offset_factor=1),
        b: T.Buffer((2, 4, 2), "int8", offset_factor=1),
        c: T.Buffer((4,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(c[0:4], a[0:4], b[0:2, 0:4, 0:2])
            T.writes(c[0:4])
            for pair in T.unroll(2):
                c[T.ramp(T.int32(0), 1, 4)] = c.vload(
                    [0], dtype="int32x4"
                ) + T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id(intrinsic),
                    T.Cast(
                        "int16x8",
                        T.reinterpret(
                            T.broadcast(
                                T.reinterpret(a.vload([2 * pair], "int8x2"), dtype="int16"), 4
                            ),
                            dtype="int8x8",
                        ),
                    )
                    * T.Cast("int16x8", b.vload([pair, 0, 0], dtype="int8x8")),
                    dtype="int32x4",
                )

    return code


@script.prim_func(s_tir=True)
def _madd_meaning(
    a: T.Buffer((2,), "int16", offset_factor=1),
    b: T.Buffer((8, 2), "int8", offset_factor=1),
    c: T.Buffer((8,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(c[0:8], a[0:2], b[0:8, 0:2])
        T.writes(c[0:8])
        for i, k in T.grid(8, 2):
            with T.sblock("update"):
                vi, vk = T.axis.remap("SR", [i, k])
                c[vi] = c[vi] + T.cast(a[vk], "int32") * T.cast(b[vi, vk], "int32")


@script.prim_func(s_tir=True)
def _madd_code(
    a: T.Buffer((2,), "int16", offset_factor=1),
    b: T.Buffer((8, 2), "int8", offset_factor=1),
    c: T.Buffer((8,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(c[0:8], a[0:2], b[0:8, 0:2])
        T.writes(c[0:8])
        c[T.ramp(T.int32(0), 1, 8)] = c.vload([0], dtype="int32x8") + T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.x86.avx2.pmadd.wd"),
            T.reinterpret(
                T.broadcast(T.reinterpret(a.vload([0], "int16x2"), dtype="int32"), 8),
                dtype="int16x16",
            ),
            T.Cast("int16x16", b.vload([0, 0], dtype="int8x16")),
            dtype="int32x8",
        )


@script.prim_func(s_tir=True)
def _vnni_meaning(
    a: T.Buffer((4,), "uint8", offset_factor=1),
    b: T.Buffer((16, 4), "int8", offset_factor=1),
    c: T.Buffer((16,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(c[0:16], a[0:4], b[0:16, 0:4])
        T.writes(c[0:16])
        for i, k in T.grid(16, 4):
            with T.sblock("update"):
                vi, vk = T.axis.remap("SR", [i, k])
                c[vi] = c[vi] + T.cast(a[vk], "int32") * T.cast(b[vi, vk], "int32")


@script.prim_func(s_tir=True)
def _vnni_code(
    a: T.Buffer((4,), "uint8", offset_factor=1),
    b: T.Buffer((16, 4), "int8", offset_factor=1),
    c: T.Buffer((16,), "int32", offset_factor=1),
) -> None:
    # TVM's own intrinsic passes <16 x i32> where LLVM 22 wants <64 x i8>.
    with T.sblock("root"):
        T.reads(c[0:16], a[0:4], b[0:16, 0:4])
        T.writes(c[0:16])
        c[T.ramp(T.int32(0), 1, 16)] = T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"),
            c.vload([0], dtype="int32x16"),
            T.reinterpret(
                T.broadcast(T.reinterpret(a.vload([0], "uint8x4"), dtype="int32"), 16),
                dtype="int8x64",
            ),
            b.vload([0, 0], dtype="int8x64"),
            dtype="int32x16",
        )


@script.prim_func(s_tir=True)
def _vnni_fours_meaning(
    a: T.Buffer((16, 4), "uint8", offset_factor=1),
    b: T.Buffer((16, 4), "int8", offset_factor=1),
    c: T.Buffer((16,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(c[0:16], a[0:16, 0:4], b[0:16, 0:4])
        T.writes(c[0:16])
        for i, k in T.grid(16, 4):
            with T.sblock("update"):
                vi, vk = T.axis.remap("SR", [i, k])
                c[vi] = c[vi] + T.cast(a[vi, vk], "int32") * T.cast(b[vi, vk], "int32")


@script.prim_func(s_tir=True)
def _vnni_fours_code(
    a: T.Buffer((16, 4), "uint8", offset_factor=1),
    b: T.Buffer((16, 4), "int8", offset_factor=1),
    c: T.Buffer((16,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(c[0:16], a[0:16, 0:4], b[0:16, 0:4])
        T.writes(c[0:16])
        c[T.ramp(T.int32(0), 1, 16)] = T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpdpbusd.512"),
            c.vload([0], dtype="int32x16"),
            T.reinterpret(a.vload([0, 0], dtype="uint8x64"), dtype="int8x64"),
            b.vload([0, 0], dtype="int8x64"),
            dtype="int32x16",
        )


@cache
def register_fours(apart: int) -> str:
    """Make known how the codes of four lines, so many apart, lie side by side: B[c, k] = A[k, c].

    Returns the name of the intrinsic.
    """
    lines = 3 * apart + 1

    @script.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle) -> None:
        stride_a, stride_x = T.int32(), T.int32()
        a = T.match_buffer(
            pa, (lines, 1, 16), "uint8", strides=[stride_a, stride_x, 1], offset_factor=1
        )
        b = T.match_buffer(pb, (16, 4), "uint8", offset_factor=1)
        with T.sblock("root"):
            T.reads(a[0:lines, 0:1, 0:16])
            T.writes(b[0:16, 0:4])
            for i, k in T.grid(16, 4):
                with T.sblock("gather"):
                    vi, vk = T.axis.remap("SS", [i, k])
                    b[vi, vk] = a[vk * apart, 0, vi]

    @script.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle) -> None:
        stride_a, stride_x = T.int32(), T.int32()
        a = T.match_buffer(
            pa, (lines, 1, 16), "uint8", strides=[stride_a, stride_x, 1], offset_factor=1
        )
        b = T.match_buffer(pb, (16, 4), "uint8", offset_factor=1)
        with T.sblock("root"):
            T.reads(a[0:lines, 0:1, 0:16])
            T.writes(b[0:16, 0:4])
            b.vstore(
                [0, 0],
                T.reinterpret(
                    T.Cast("uint32x16", a.vload([0, 0, 0], dtype="uint8x16"))
                    | T.Cast("uint32x16", a.vload([apart, 0, 0], dtype="uint8x16"))
                    << T.broadcast(T.uint32(8), 16)
                    | T.Cast("uint32x16", a.vload([2 * apart, 0, 0], dtype="uint8x16"))
                    << T.broadcast(T.uint32(16), 16)
                    | T.Cast("uint32x16", a.vload([3 * apart, 0, 0], dtype="uint8x16"))
                    << T.broadcast(T.uint32(24), 16),
                    dtype="uint8x64",
                ),
            )

    intrinsic = f"edgeopt_fours_{apart}"
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic


@cache
def register_intrinsics() -> None:
    """Make the instructions known to TVM's schedules; once per process is enough."""
    add = "llvm.arm.neon.vpaddls.v4i32.v8i16"
    pairs = {
        "edgeopt_pair_arm": (_pair_meaning, _make_pair(add)),
        "edgeopt_single_arm": (_pair_meaning, _make_single(add)),
        "edgeopt_madd": (_madd_meaning, _madd_code),
        "edgeopt_vnni": (_vnni_meaning, _vnni_code),
        "edgeopt_vnni_fours": (_vnni_fours_meaning, _vnni_fours_code),
    }
    for name, (meaning, code) in pairs.items():
        TensorIntrin.register(name, meaning, code, override=True)
