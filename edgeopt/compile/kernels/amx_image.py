"""The inner loop of a convolution of codes by tile registers (AMX), as assembly.

A register of rows takes pixels that are equally far apart, from the image as it lies in memory.
Up to four registers of rows by one of columns, or two by two, gain their sums while the taps of a
window are walked. See amx_tile.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from edgeopt.compile.kernels.amx_tile import GROUP, PREFIX, STEP, configure, write_function

#: Columns of a register of sums, which are of int32.
_SIDE = 16
_SUMS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTile:
    """A tile: whole lines of an output, so many, by columns that are a multiple of 16.

    dtype: that of the image's codes.
    """

    dtype: str
    lines: int
    #: Pixels of a line of the output, and those that one register takes.
    columns: int
    rows: int
    #: Columns of the product: output channels.
    width: int
    #: Rows of a window, and steps of 64 codes in each.
    taps: int
    steps: int
    #: Lines of the image from one line of the output to the next, and from one tap to the next.
    apart: tuple[int, int]
    #: Bytes from line to line of the image, and from one pixel that is read to the next.
    line: int
    pixel: int

    most_rows: ClassVar[int] = _SIDE

    @property
    def name(self) -> str:
        """Name the function that computes the tile."""
        sizes = (self.lines, self.columns, self.rows, self.width, self.taps, self.steps)
        numbers = (*sizes, *self.apart, self.line, self.pixel)
        return f"{PREFIX}_image_{self.dtype}_{'_'.join(map(str, numbers))}"

    @property
    def across(self) -> int:
        """Registers of columns that are multiplied together."""
        return self.width // _SIDE

    @property
    def registers(self) -> list[tuple[int, int]]:
        """List the registers of rows: line, and first pixel."""
        return [
            (line, pixel)
            for line in range(self.lines)
            for pixel in range(0, self.columns, self.rows)
        ]


@cache
def write_image_tile(tile: ImageTile) -> str:
    """Write the LLVM module of one tile: int name(A, B, C).

    A is the first code that the first window reads, of the tile's dtype; B is int8
    [taps, steps * 16, width, 4]; C, which is overwritten, is int32 [lines, columns, width]. B and
    C are contiguous.
    """
    assert tile.columns % tile.rows == 0
    assert tile.rows <= _SIDE
    assert tile.across in (1, 2)
    down = _SUMS // tile.across
    registers = tile.registers
    lines = [
        "ldtilecfg ($3)",
        f"movl $${tile.pixel}, %r11d",
        f"movl $${GROUP * tile.width}, %eax",
    ]
    for first in range(0, len(registers), down):
        lines += _walk_taps(tile, registers[first : first + down])
    # Sums and rows come first, whatever the size of a block.
    short = _SUMS + (down if tile.across == 2 else 3)
    setup = configure(dict.fromkeys(range(short), tile.rows))
    return write_function(tile.name, setup, [*lines, "tilerelease"], arguments=3)


def _walk_taps(tile: ImageTile, block: list[tuple[int, int]]) -> Iterator[str]:
    """Sum what lies under each row of taps, for a block of registers.

    A, B and C are $0 to $2. rcx and r8 point to a row of taps and to a step of it, r9 to the
    step's columns; rsi and r10 count.
    """
    sums = range(len(block) * tile.across)
    yield from (f"tilezero %tmm{each}" for each in sums)
    yield from ("movq $0, %rcx", "movq $1, %r9", f"movl $${tile.taps}, %esi", "1:")
    yield from ("movq %rcx, %r8", f"movl $${tile.steps}, %r10d", "2:")
    yield from _multiply_step(tile, block)
    yield f"addq $${STEP}, %r8"
    yield f"addq $${STEP * tile.width}, %r9"
    yield from ("decl %r10d", "jne 2b")
    yield from (f"addq $${tile.apart[1] * tile.line}, %rcx", "decl %esi", "jne 1b")
    for number, (line, pixel) in enumerate(block):
        row = (line * tile.columns + pixel) * tile.width
        for column in range(tile.across):
            place = 4 * (row + column * _SIDE)
            yield f"tilestored %tmm{number * tile.across + column}, {place}($2,%rax,1)"


def _multiply_step(tile: ImageTile, block: list[tuple[int, int]]) -> Iterator[str]:
    """Multiply 64 codes of each row."""
    multiply = "tdpbusd" if tile.dtype == "uint8" else "tdpbssd"
    places = [line * tile.apart[0] * tile.line + pixel * tile.pixel for line, pixel in block]
    if tile.across == 1:
        yield "tileloadd (%r9,%rax,1), %tmm7"
        for number, place in enumerate(places):
            # Three registers take turns for four of rows.
            left = _SUMS + number % 3
            yield f"tileloadd {place}(%r8,%r11,1), %tmm{left}"
            yield f"{multiply} %tmm7, %tmm{left}, %tmm{number}"
        return
    for number, place in enumerate(places):
        yield f"tileloadd {place}(%r8,%r11,1), %tmm{_SUMS + number}"
    for column in range(tile.across):
        right = _SUMS + 2 + column
        yield f"tileloadd {column * 4 * _SIDE}(%r9,%rax,1), %tmm{right}"
        for number in range(len(block)):
            total = number * tile.across + column
            yield f"{multiply} %tmm{right}, %tmm{_SUMS + number}, %tmm{total}"
