"""The inner loop of a product of int8 codes on 64-bit ARM, as assembly.

Sums of a tile live in registers while K is walked, 16 codes of each row at a time: one register per
row. With dot products four columns share a register, which is multiplied by four codes of a row at
once, by element. Without, 16 codes of a column fill one: each row and column keep four partial
sums, and these are added up at the end. Where the core multiplies small matrices, a register holds
eight codes of two rows, or of two columns, and the four sums of both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

from edgeopt.compile.kernels import code_quads
from edgeopt.compile.kernels.microkernel import (
    MOST_LOADED,
    REGISTERS,
    clear_vectors,
    load_all,
    load_vectors,
    store_vectors,
    walk_depth,
    write_function,
)
from edgeopt.compile.kernels.row_tile import add_chains, chains_of

#: How codes are multiplied: as matrices of 2 x 8 by 8 x 2; with dot products; in pairs that are
#: added in int16, which weights of -128 overflow; in fours where that is known not to, else in
#: pairs; or each by itself.
Method = Literal["matrix", "dot", "pair", "quad", "single"]

#: Codes of a row that are read at a time, and as matrices.
STEP = 16
_MATRIX_STEP = 8
#: int32 lanes of a vector register.
_LANES = 4
#: Steps of K for each branch.
_UNROLL = 4
#: Sums of rows and columns that share no register: with more, no room is left for products.
_MOST_SUMS = 16
#: Products that are computed side by side, and dot products that hide their latency.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class CodeTile:
    """A tile of rows and columns, the latter a multiple of four, and how it is computed."""

    method: Method
    height: int
    width: int

    @property
    def dtype(self) -> str:
        """What codes of rows are when they are multiplied."""
        return "int8"

    @property
    def step(self) -> int:
        """Codes of a row that lie together in A."""
        return _MATRIX_STEP if self.method == "matrix" else STEP

    @property
    def group(self) -> int:
        """Codes of a column that lie together in B."""
        wide = {"matrix": _MATRIX_STEP, "dot": 4, "quad": code_quads.BLOCK}
        return wide.get(self.method, STEP)

    @property
    def lead(self) -> int:
        """Groups of every column that lie in front of those of B."""
        return int(self.method == "quad")

    @property
    def sums(self) -> int:
        """Registers that hold sums."""
        return self.height * self.width // (_LANES if self.shares else 1)

    @property
    def chains(self) -> int:
        """Partial sums of each dot product's sum: as many as hide the latency, by codes of K."""
        return chains_of(self.sums, STEP // self.group) if self.method == "dot" else 1

    @property
    def held(self) -> int:
        """Registers that hold partial sums."""
        return self.sums * self.chains

    @property
    def shares(self) -> bool:
        """Whether a register holds the sums of several rows or columns."""
        return self.method in ("matrix", "dot")

    @property
    def loaded(self) -> int:
        """Registers of B that one load fills."""
        if not self.shares:
            return _LANES
        rows = self.height // 2 if self.method == "matrix" else self.height
        return min(MOST_LOADED, self.width, REGISTERS - self.held - rows)

    @property
    def name(self) -> str:
        """Name the function that computes the tile."""
        return f"edgeopt_{self.method}_{self.height}x{self.width}"

    @property
    def fits(self) -> bool:
        """Whether the registers suffice."""
        if self.method == "matrix" and self.height % 2:
            return False
        if self.shares:
            return self.loaded >= 2
        return self.height <= _LANES and self.sums <= _MOST_SUMS

    @property
    def work(self) -> float:
        """Instructions for 16 codes of K, and more where each would wait for the one before.

        Loading a register counts half, as cores load two at a time or beside a multiplication.
        """
        loads = 0.5 * (self.height + self.width)
        if self.shares:
            each = STEP // self.group
            return (each * self.sums + loads) * max(1.0, _AT_ONCE / self.held)
        return (4 if self.method == "single" else 3) * self.sums + loads

    @property
    def fixed(self) -> float:
        """Instructions of a tile whatever K is: clearing, adding up, storing, and encoding.

        As counted in compiled models: narrowing eight codes together takes less than four.
        """
        vectors = self.height * self.width / _LANES
        narrowed = 9.0 if self.width % (2 * _LANES) == 0 else 11.5
        each = {"matrix": 2.5, "dot": 1.5}.get(self.method, 1.9)
        chained = 2.0 * (self.held - self.sums)
        return 30.0 + self.sums * each + chained + narrowed * vectors

    @property
    def turn(self) -> float:
        """Instructions of one step of K, with its share of the branch; not of fours."""
        return len(_walk_step(self)) + 2 / _UNROLL


@cache
def write_code_tile(tile: CodeTile) -> str:
    """Write the LLVM module of one tile: int name(A, B, C, steps of K).

    A is [K / step, height, step] and B is [K / group, width, group], both int8; C, which is
    overwritten, is int32 [height, width]. All are contiguous. In fours, bits lie in front of B.
    """
    assert tile.fits
    # The assembler need not know of a core that has them.
    extension = {"matrix": [".arch_extension i8mm"], "dot": [".arch_extension dotprod"]}
    lines = [
        *extension.get(tile.method, []),
        *clear_vectors(list(range(tile.held))),
        *_walk(tile),
        *_store(tile),
    ]
    return write_function(tile.name, lines)


def _store(tile: CodeTile) -> list[str]:
    match tile.method:
        case "matrix":
            return _store_squares(tile)
        case "dot":
            added = add_chains(tile.sums, tile.chains, "add")
            return [*added, *store_vectors(list(range(tile.sums)))]
        case "pair" | "quad" | "single":
            return _add_up(tile.sums)


def _walk(tile: CodeTile) -> list[str]:
    if tile.method == "quad":
        return code_quads.walk_blocks(tile.height, tile.width)
    step = _walk_step(tile)
    return walk_depth(step * _UNROLL, step, unroll=_UNROLL)


def _walk_step(tile: CodeTile) -> list[str]:
    match tile.method:
        case "matrix":
            return _matrix_step(tile)
        case "dot":
            return _dot_step(tile)
        case "pair" | "quad" | "single":
            return _long_step(tile)


def _load_rows(tile: CodeTile) -> tuple[list[int], list[str]]:
    """Load a step of each row; return the registers, which follow the sums, and the loads."""
    count = tile.height // 2 if tile.method == "matrix" else tile.height
    left = list(range(tile.held, tile.held + count))
    return left, load_all(left, "$0")


def _dot_step(tile: CodeTile) -> list[str]:
    """Multiply each row by each column, four codes at once."""
    left, lines = _load_rows(tile)
    vectors = tile.width // _LANES
    reads = [(four, column) for four in range(STEP // 4) for column in range(vectors)]
    for right, part in _load_columns(tile, left[-1] + 1, reads, lines):
        lines += [
            f"sdot v{four % tile.chains * tile.sums + row * vectors + column}.4s, "
            f"v{register}.16b, v{left[row]}.4b[{four}]"
            for register, (four, column) in zip(right, part, strict=True)
            for row in range(tile.height)
        ]
    return lines


_Read = TypeVar("_Read")


def _load_columns(
    tile: CodeTile, first: int, reads: list[_Read], lines: list[str]
) -> Iterator[tuple[list[int], list[_Read]]]:
    """Load registers of B, from the first free one on, in parts; say which read is in which."""
    free, loaded = list(range(first, REGISTERS)), tile.loaded
    for start in range(0, len(reads), loaded):
        # Loading into other registers than before lets cores in program order run ahead.
        skip = loaded if start // loaded % 2 and len(free) >= 2 * loaded else 0
        part = reads[start : start + loaded]
        right = free[skip : skip + len(part)]
        lines.append(load_vectors(right, "$1"))
        yield right, part


def _matrix_step(tile: CodeTile) -> list[str]:
    """Multiply two rows by two columns at a time, eight codes of each."""
    left, lines = _load_rows(tile)
    pairs = tile.width // 2
    for right, part in _load_columns(tile, left[-1] + 1, list(range(pairs)), lines):
        lines += [
            f"smmla v{row * pairs + column}.4s, v{left[row]}.16b, v{register}.16b"
            for register, column in zip(right, part, strict=True)
            for row in range(len(left))
        ]
    return lines


def _store_squares(tile: CodeTile) -> list[str]:
    """Store sums of two rows by two columns, of which neighbours make four columns of each row."""
    pairs, spare, lines = tile.width // 2, tile.sums, list[str]()
    for row in range(tile.height // 2):
        upper, lower = [], []
        for first in range(row * pairs, (row + 1) * pairs, 2):
            lines += [
                f"zip1 v{spare}.2d, v{first}.2d, v{first + 1}.2d",
                f"zip2 v{first + 1}.2d, v{first}.2d, v{first + 1}.2d",
            ]
            upper.append(spare)
            lower.append(first + 1)
            spare = first
        lines += store_vectors(upper + lower)
    return lines


def _long_step(tile: CodeTile) -> list[str]:
    """Multiply 16 codes of each row by those of each column, four columns at a time.

    Of one row eight where registers suffice: a product's instructions wait for one another.
    """
    left, lines = _load_rows(tile)
    first = left[-1] + 1
    twice = tile.height == 1 and first + 2 * _LANES + _AT_ONCE <= REGISTERS
    together = 2 * _LANES if twice else _LANES
    right = list(range(first, first + together))
    free = list(range(right[-1] + 1, REGISTERS))[:_AT_ONCE]
    for start in range(0, tile.width, together):
        columns = range(start, min(start + together, tile.width))
        used = right[: len(columns)]
        lines += [load_vectors(used[at : at + _LANES], "$1") for at in range(0, len(used), _LANES)]
        pairs = [
            (row * tile.width + column, left[row], register)
            for column, register in zip(columns, used, strict=True)
            for row in range(tile.height)
        ]
        for begin in range(0, len(pairs), len(free)):
            lines += _multiply(tile.method, pairs[begin : begin + len(free)], free)
    return lines


def _multiply(method: Method, pairs: list[tuple[int, int, int]], free: list[int]) -> list[str]:
    """Multiply vectors of 16 codes, each (sum, row, column), by way of free registers."""
    low, high, add = [], [], []
    for (total, row, column), product in zip(pairs, free, strict=False):
        low.append(f"smull v{product}.8h, v{row}.8b, v{column}.8b")
        high.append(f"v{product}.8h, v{row}.16b, v{column}.16b")
        add.append(f"sadalp v{total}.4s, v{product}.8h")
    if method == "pair":
        return [*low, *(f"smlal2 {each}" for each in high), *add]
    return [*low, *add, *(f"smull2 {each}" for each in high), *add]


def _add_up(sums: int) -> list[str]:
    """Add up the four partial sums of each element and store the elements."""
    lines = []
    for first in range(0, sums, 4):
        lines += [
            f"addp v{first}.4s, v{first}.4s, v{first + 1}.4s",
            f"addp v{first + 2}.4s, v{first + 2}.4s, v{first + 3}.4s",
            f"addp v{first}.4s, v{first}.4s, v{first + 2}.4s",
        ]
    return [*lines, *store_vectors(list(range(0, sums, 4)))]
