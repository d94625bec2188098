# mypy: ignore-errors
"""Functions in assembly as instructions of a schedule: each computes one tile of a product."""

from functools import cache

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T  # noqa: N812

from edgeopt.compile.kernels import script
from edgeopt.compile.kernels.functions import choose_level
from edgeopt.compile.kernels.microkernel import APART


@cache
def register_tile(name: str, height: int, width: int, depth: int) -> str:
    """Make a function name(A, B, C, K) known to schedules: C[height, width] = A^T B.

    A is [depth, height rounded up to 4] as [depth, vectors, 4]. C, whose start is register_start's,
    is overwritten.
    Returns the name of the intrinsic.
    """
    vectors = -(-height // 4)

    @script.prim_func(s_tir=True)
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

    @script.prim_func(s_tir=True)
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
def register_row(name: str, width: int, depth: int) -> str:
    """Make a function name(A, B, C, K, S) known to schedules: C[1, width] gains A B; S is C.

    A is float32 [depth] and B is [depth, width]. Returns the name of the intrinsic.
    """

    @script.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_c = T.int32()
        a = T.match_buffer(pa, (depth,), "float32", offset_factor=1)
        b = T.match_buffer(pb, (depth, width), "float32", offset_factor=1)
        c = T.match_buffer(pc, (1, width), "float32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(c[0, 0:width], a[0:depth], b[0:depth, 0:width])
            T.writes(c[0, 0:width])
            for j, k in T.grid(width, depth):
                with T.sblock("update"):
                    vj, vk = T.axis.remap("SR", [j, k])
                    c[0, vj] = c[0, vj] + a[vk] * b[vk, vj]

    @script.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_c = T.int32()
        a = T.match_buffer(pa, (depth,), "float32", offset_factor=1)
        b = T.match_buffer(pb, (depth, width), "float32", offset_factor=1)
        c = T.match_buffer(pc, (1, width), "float32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(c[0, 0:width], a[0:depth], b[0:depth, 0:width])
            T.writes(c[0, 0:width])
            T.evaluate(
                T.call_extern(
                    "int32",
                    name,
                    a.access_ptr("r"),
                    b.access_ptr("r"),
                    c.access_ptr("rw"),
                    T.int64(depth),
                    c.access_ptr("r"),
                )
            )

    intrinsic = f"{name}_{depth}"
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic


@cache
def register_levels(name: str, places: int, lanes: int) -> str:
    """Make a function name(W, L, C) known to schedules: C[j, i] = L[4 bits of W[i] from 4 j on].

    W is int32 [lanes], L float32 [16] and C [places, lanes]. Returns the name of the intrinsic.
    """

    @script.prim_func(s_tir=True)
    def meaning(pw: T.handle, pl: T.handle, pc: T.handle) -> None:
        words = T.match_buffer(pw, (lanes,), "int32", offset_factor=1)
        levels = T.match_buffer(pl, (16,), "float32", offset_factor=1)
        c = T.match_buffer(pc, (places, lanes), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(words[0:lanes], levels[0:16])
            T.writes(c[0:places, 0:lanes])
            # Shapes of Relax are int64, and so are the places of codes.
            for j, i in T.grid(T.int64(places), T.int64(lanes)):
                with T.sblock("found"):
                    vj, vi = T.axis.remap("SS", [j, i])
                    c[vj, vi] = choose_level(words[vi], vj, 4, lambda level: levels[level])

    @script.prim_func(s_tir=True)
    def code(pw: T.handle, pl: T.handle, pc: T.handle) -> None:
        words = T.match_buffer(pw, (lanes,), "int32", offset_factor=1)
        levels = T.match_buffer(pl, (16,), "float32", offset_factor=1)
        c = T.match_buffer(pc, (places, lanes), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(words[0:lanes], levels[0:16])
            T.writes(c[0:places, 0:lanes])
            T.evaluate(
                T.call_extern(
                    "int32", name, words.access_ptr("r"), levels.access_ptr("r"), c.access_ptr("w")
                )
            )

    intrinsic = f"{name}_{lanes}"
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic


@cache
def register_start(height: int, width: int, dtype: str = "float32") -> str:
    """Make known the start of a tile, which takes no code: the tile's own function overwrites C.

    Returns the name of the intrinsic.
    """

    @script.prim_func(s_tir=True)
    def meaning(pc: T.handle) -> None:
        stride_c = T.int32()
        c = T.match_buffer(pc, (height, width), dtype, strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads()
            T.writes(c[0:height, 0:width])
            if height == 1:
                # Where a loop of one turn stands, schedules see none.
                for j in range(width):
                    with T.sblock("start"):
                        vj = T.axis.remap("S", [j])
                        c[0, vj] = T.cast(0, dtype)
            else:
                for i, j in T.grid(height, width):
                    with T.sblock("start"):
                        vi, vj = T.axis.remap("SS", [i, j])
                        c[vi, vj] = T.cast(0, dtype)

    @script.prim_func(s_tir=True)
    def code(pc: T.handle) -> None:
        stride_c = T.int32()
        c = T.match_buffer(pc, (height, width), dtype, strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads()
            T.writes(c[0:height, 0:width])
            T.evaluate(0)

    intrinsic = f"edgeopt_start_{dtype}_{height}x{width}"
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic


@cache
def register_apart(height: int, width: int, value: float) -> str:
    """Make known the start of a tile, one value, that LLVM keeps apart from the next tile's.

    Its loops are those of a schedule that has unrolled and vectorized them. Returns the name of
    the intrinsic.
    """

    @script.prim_func(s_tir=True)
    def meaning(pc: T.handle) -> None:
        stride_c = T.int32()
        c = T.match_buffer(pc, (height, width), "float32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads()
            T.writes(c[0:height, 0:width])
            for i in T.unroll(height):
                for lane in T.vectorized(width):
                    with T.sblock("start"):
                        vi, vj = T.axis.remap("SS", [i, lane])
                        c[vi, vj] = T.float32(value)

    @script.prim_func(s_tir=True)
    def code(pc: T.handle) -> None:
        stride_c = T.int32()
        c = T.match_buffer(pc, (height, width), "float32", strides=[stride_c, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads()
            T.writes(c[0:height, 0:width])
            T.evaluate(T.call_extern("int32", APART))
            for i in T.unroll(height):
                c[i, T.ramp(T.int32(0), 1, width)] = T.broadcast(T.float32(value), width)

    intrinsic = f"edgeopt_apart_{height}x{width}_{value}"
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic


@cache
def register_transpose(*, flat: bool) -> str:
    """Make the transpose of 4 x 4 values known to schedules: B[k, 0, row] = A[row, k].

    Flat, B is [k, row]. Both are read and written as vectors, which LLVM zips; by element, it
    inserts one at a time. Returns the name of the intrinsic.
    """
    intrinsic = "edgeopt_transpose_flat" if flat else "edgeopt_transpose"
    TensorIntrin.register(intrinsic, *(_flat_transpose() if flat else _transpose()), override=True)
    return intrinsic


def _transpose():
    @T.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle) -> None:
        stride_a, stride_b, stride_v = T.int32(), T.int32(), T.int32()
        a = T.match_buffer(pa, (4, 4), "float32", strides=[stride_a, 1], offset_factor=1)
        b = T.match_buffer(
            pb, (4, 1, 4), "float32", strides=[stride_b, stride_v, 1], offset_factor=1
        )
        with T.sblock("root"):
            T.reads(a[0:4, 0:4])
            T.writes(b[0:4, 0:1, 0:4])
            for k, row in T.grid(4, 4):
                with T.sblock("transpose"):
                    vk, vr = T.axis.remap("SS", [k, row])
                    b[vk, 0, vr] = a[vr, vk]

    @T.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle) -> None:
        stride_a, stride_b, stride_v = T.int32(), T.int32(), T.int32()
        a = T.match_buffer(pa, (4, 4), "float32", strides=[stride_a, 1], offset_factor=1)
        b = T.match_buffer(
            pb, (4, 1, 4), "float32", strides=[stride_b, stride_v, 1], offset_factor=1
        )
        with T.sblock("root"):
            T.reads(a[0:4, 0:4])
            T.writes(b[0:4, 0:1, 0:4])
            b.vstore([0, 0, 0], column_of(a, 0))
            b.vstore([1, 0, 0], column_of(a, 1))
            b.vstore([2, 0, 0], column_of(a, 2))
            b.vstore([3, 0, 0], column_of(a, 3))

    return meaning, code


def _flat_transpose():
    @T.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle) -> None:
        stride_a, stride_b = T.int32(), T.int32()
        a = T.match_buffer(pa, (4, 4), "float32", strides=[stride_a, 1], offset_factor=1)
        b = T.match_buffer(pb, (4, 4), "float32", strides=[stride_b, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(a[0:4, 0:4])
            T.writes(b[0:4, 0:4])
            for k, row in T.grid(4, 4):
                with T.sblock("transpose"):
                    vk, vr = T.axis.remap("SS", [k, row])
                    b[vk, vr] = a[vr, vk]

    @T.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle) -> None:
        stride_a, stride_b = T.int32(), T.int32()
        a = T.match_buffer(pa, (4, 4), "float32", strides=[stride_a, 1], offset_factor=1)
        b = T.match_buffer(pb, (4, 4), "float32", strides=[stride_b, 1], offset_factor=1)
        with T.sblock("root"):
            T.reads(a[0:4, 0:4])
            T.writes(b[0:4, 0:4])
            b.vstore([0, 0], column_of(a, 0))
            b.vstore([1, 0], column_of(a, 1))
            b.vstore([2, 0], column_of(a, 2))
            b.vstore([3, 0], column_of(a, 3))

    return meaning, code


def column_of(a, place: int):
    """Zip the rows of a square of vectors, perfect shuffles all, until one column is left."""
    lanes = int(a.shape[0])

    def shuffled(stage: int, row: int):
        if stage == 0:
            return a.vload([row, 0], f"{a.dtype}x{lanes}")
        first, upper = divmod(row, 2)
        order = [upper * lanes // 2 + lane // 2 + lane % 2 * lanes for lane in range(lanes)]
        pair = [shuffled(stage - 1, each) for each in (first, first + lanes // 2)]
        return tirx.Shuffle(pair, order)

    return shuffled(lanes.bit_length() - 1, place)


def _make_code_meaning(shape: tuple[int, int, int], step: int, group: int, dtype: str):
    """Say what a tile of codes computes."""
    height, width, depth = shape
    steps, groups = depth // step, -(-depth // group)

    @script.prim_func(s_tir=True)
    def meaning(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_c = T.int32()
        a = T.match_buffer(pa, (steps, height, step), dtype, offset_factor=1)
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

    return meaning


@cache
def register_code_tile(
    name: str, shape: tuple[int, int, int], sizes: tuple[int, int], dtype: str
) -> str:
    """Make a function name(A, B, C, K / step) known to schedules: C[height, width] = A B, int32.

    A is [K / step, height, step] of a dtype and B int8 [K / group, width, group]; the sizes are
    those of step and group, the shape is height, width and K. C, whose start is register_start's,
    is overwritten. Returns the intrinsic's name.
    """
    (height, width, depth), (step, group) = shape, sizes
    steps, groups = depth // step, -(-depth // group)

    @script.prim_func(s_tir=True)
    def code(pa: T.handle, pb: T.handle, pc: T.handle) -> None:
        stride_c = T.int32()
        a = T.match_buffer(pa, (steps, height, step), dtype, offset_factor=1)
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
    meaning = _make_code_meaning(shape, step, group, dtype)
    TensorIntrin.register(intrinsic, meaning, code, override=True)
    return intrinsic
