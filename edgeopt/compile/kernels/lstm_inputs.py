"""The inputs' share of an LSTM's gates for many steps, x @ W + bias, as assembly that stores it.

Sums start from the bias and are stored row by row where a step of the layer takes them: the
schedule of a product would add the bias to a tile in memory, a fourth of the work at 64 inputs.
"""

from functools import cache

import numpy as np

from edgeopt.compile.kernels.microkernel import (
    SINGLE,
    load_vectors,
    multiply_pieces,
    walk_pieces,
)

#: Steps and vectors of columns of a tile.
HEIGHT, VECTORS = 8, 3


def split_columns(columns: int) -> list[tuple[int, int]]:
    """List the first vector of each tile of columns and its count of vectors."""
    vectors = columns // SINGLE.lanes
    return [(first, min(VECTORS, vectors - first)) for first in range(0, vectors, VECTORS)]


def pack_columns(matrix: np.ndarray) -> np.ndarray:
    """Lay out W [K, columns] tile after tile, each [K, its columns]."""
    tiles = [
        matrix[:, first * SINGLE.lanes : (first + count) * SINGLE.lanes].ravel()
        for first, count in split_columns(matrix.shape[1])
    ]
    return np.concatenate(tiles)


def name_inputs(height: int, vectors: int) -> str:
    """Name the function that computes one tile."""
    return f"edgeopt_inputs_{height}x{vectors * SINGLE.lanes}"


@cache
def write_inputs(height: int, vectors: int) -> str:
    """Write the LLVM module of one tile: int inputs(A, B, C, K, S, D).

    A is [K, height rounded up to 4], B is [K, 4 * vectors], both contiguous, and S [4 * vectors];
    rows of C, 4 * vectors of float32 that are overwritten, lie D bytes apart.
    """
    first, rest = list(range(vectors)), range(vectors, height * vectors)
    rows = [[row * vectors + column for column in first] for row in range(height)]
    lines = [
        "mov x11, $7",
        load_vectors(first, "x11"),
        *(f"mov v{each}.16b, v{each % vectors}.16b" for each in rest),
        *walk_pieces(multiply_pieces(height, vectors, SINGLE)),
        *(f"st1 {{{', '.join(f'v{each}.4s' for each in row)}}}, [$2], $8" for row in rows),
    ]
    clobbers = [*(f"x{i}" for i in range(9, 12)), "memory", "cc", *(f"v{i}" for i in range(32))]
    constraints = ",".join([*["=&r"] * 3, "r", *"012", "r", "r", *(f"~{{{x}}}" for x in clobbers)])
    text = "\\0A".join(lines)
    return (
        f"define linkonce_odr hidden i32 @{name_inputs(height, vectors)}"
        "(ptr %a, ptr %b, ptr %c, i64 %k, ptr %s, i64 %d) noinline nounwind {\n"
        f'  %done = call {{ptr, ptr, ptr}} asm sideeffect "{text}", "{constraints}"'
        "(i64 %k, ptr %a, ptr %b, ptr %c, ptr %s, i64 %d)\n"
        "  ret i32 0\n}\n"
    )
