# mypy: ignore-errors
"""Dot products of int8 codes as instructions, in TVM's script language.

Each pair of functions says what is computed, and by which instructions: a vector of int32 sums,
one per column, gains the products of a few codes of one row with as many rows of B.
"""

from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812


@T.prim_func(s_tir=True)
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


@T.prim_func(s_tir=True)
def _pair_code(
    a: T.Buffer((4,), "int8", offset_factor=1),
    b: T.Buffer((2, 4, 2), "int8", offset_factor=1),
    c: T.Buffer((4,), "int32", offset_factor=1),
) -> None:
    # Two products of -128 by 127 still fit int16: weights are not -128 here.
    with T.sblock("root"):
        T.reads(c[0:4], a[0:4], b[0:2, 0:4, 0:2])
        T.writes(c[0:4])
        c[T.ramp(T.int32(0), 1, 4)] = c.vload([0], dtype="int32x4") + T.call_llvm_pure_intrin(
            T.llvm_lookup_intrinsic_id("llvm.arm.neon.vpaddls.v4i32.v8i16"),
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


@T.prim_func(s_tir=True)
def _single_code(
    a: T.Buffer((4,), "int8", offset_factor=1),
    b: T.Buffer((2, 4, 2), "int8", offset_factor=1),
    c: T.Buffer((4,), "int32", offset_factor=1),
) -> None:
    with T.sblock("root"):
        T.reads(c[0:4], a[0:4], b[0:2, 0:4, 0:2])
        T.writes(c[0:4])
        for pair in T.unroll(2):
            c[T.ramp(T.int32(0), 1, 4)] = c.vload([0], dtype="int32x4") + T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id("llvm.arm.neon.vpaddls.v4i32.v8i16"),
                T.Cast(
                    "int16x8",
                    T.reinterpret(
                        T.broadcast(T.reinterpret(a.vload([2 * pair], "int8x2"), dtype="int16"), 4),
                        dtype="int8x8",
                    ),
                )
                * T.Cast("int16x8", b.vload([pair, 0, 0], dtype="int8x8")),
                dtype="int32x4",
            )


@T.prim_func(s_tir=True)
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


@T.prim_func(s_tir=True)
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


@T.prim_func(s_tir=True)
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


@T.prim_func(s_tir=True)
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


@cache
def register_intrinsics() -> None:
    """Make the instructions known to TVM's schedules; once per process is enough."""
    pairs = {
        "edgeopt_pair_arm": (_pair_meaning, _pair_code),
        "edgeopt_single_arm": (_pair_meaning, _single_code),
        "edgeopt_madd": (_madd_meaning, _madd_code),
        "edgeopt_vnni": (_vnni_meaning, _vnni_code),
    }
    for name, (meaning, code) in pairs.items():
        TensorIntrin.register(name, meaning, code, override=True)


@cache
def register_tile(name: str, height: int, width: int, depth: int) -> str:
    """Make a function name(A, B, C, K) known to schedules: C[height, width] = A^T B.

    A is [depth, height rounded up to 4] as [depth, vectors, 4]. C, whose start is register_start's,
    is overwritten.
    Returns the name of the intrinsic.
    """
    vectors = -(-height // 4)

    @T.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_c = T.int32()
        a = T.match_buffer(pa, (depth, vectors, 4), "float32", offset_factor=1)
        b = T.match_buffer(pb, (depth, width), "float32", offset_factor=1)
        c = T.match_buffer(pc, (height, width), "float32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(c[0:height, 0:width], a[0:depth, 0:vectors, 0:4], b[0:depth, 0:width])
            T.writes(c[0:height, 0:width])
            for i, j, k in T.grid(height, width, depth):
                with T.sblock("update"):
                    vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                    c[vi, vj] = c[vi, vj] + a[vk, vi // 4, vi % 4] * b[vk, vj]

    @T.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_c = T.int32()
        a = T.match_buffer(pa, (depth, vectors, 4), "float32", offset_factor=1)
        b = T.match_buffer(pb, (depth, width), "float32", offset_factor=1)
        c = T.match_buffer(pc, (height, width), "float32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(c[0:height, 0:width], a[0:depth, 0:vectors, 0:4], b[0:depth, 0:width])
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
def register_start(height: int, width: int) -> str:
    """Make known the start of a tile, which takes no code: register_tile's overwrites C.

    Returns the name of the intrinsic.
    """

    @T.prim_func(s_tir=True)
    def meaning(pc: T.handle) -> None:
        stride_c = T.int32()
        c = T.match_buffer(pc, (height, width), "float32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads()
            T.writes(c[0:height, 0:width])
            for i, j in T.grid(height, width):
                with T.sblock("start"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    c[vi, vj] = T.float32(0.0)

    @T.prim_func(s_tir=True)
    def code(pc: T.handle) -> None:
        stride_c = T.int32()
        c = T.match_buffer(pc, (height, width), "float32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads()
            T.writes(c[0:height, 0:width])
            T.evaluate(0)

    intrinsic = f"edgeopt_start_{height}x{width}"
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic


@cache
def register_code_tile(name: str, shape: tuple[int, int, int], step: int, group: int) -> str:
    """Make a function name(A, B, C, K / step) known to schedules: C[height, width] = A B, int32.

    A is int8 [K / step, height, step] and B is [K / group, width, group]; the shape is height,
    width and K. C must hold zeros before. Returns the name of the intrinsic.
    """
    height, width, depth = shape
    steps, groups = depth // step, depth // group

    @T.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_c = T.int32()
        a = T.match_buffer(pa, (steps, height, step), "int8", offset_factor=1)
        b = T.match_buffer(pb, (groups, width, group), "int8", offset_factor=1)
        c = T.match_buffer(pc, (height, width), "int32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(
                c[0:height, 0:width], a[0:steps, 0:height, 0:step], b[0:groups, 0:width, 0:group]
            )
            T.writes(c[0:height, 0:width])
            if height == 1:
                # Where a loop of one turn stands, schedules see none.
                for j, k in T.grid(width, depth):
                    with T.sblock("update"):
                        vj, vk = T.axis.remap("SR", [j, k])
                        c[0, vj] = c[0, vj] + T.cast(a[vk // step, 0, vk % step], "int32") * T.cast(
                            b[vk // group, vj, vk % group], "int32"
                        )
            else:
                for i, j, k in T.grid(height, width, depth):
                    with T.sblock("update"):
                        vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                        c[vi, vj] = c[vi, vj] + T.cast(
                            a[vk // step, vi, vk % step], "int32"
                        ) * T.cast(b[vk // group, vj, vk % group], "int32")

    @T.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_c = T.int32()
        a = T.match_buffer(pa, (steps, height, step), "int8", offset_factor=1)
        b = T.match_buffer(pb, (groups, width, group), "int8", offset_factor=1)
        c = T.match_buffer(pc, (height, width), "int32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(
                c[0:height, 0:width], a[0:steps, 0:height, 0:step], b[0:groups, 0:width, 0:group]
            )
            T.writes(c[0:height, 0:width])
            T.evaluate(
                T.call_extern(
                    "int32",
                    name,
                    a.access_ptr("r"),
                    b.access_ptr("r"),
                    c.access_ptr("w"),
                    T.int64(steps),
                )
            )

    intrinsic = f"{name}_{depth}"
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic
