"""The inner loop of a product of int8 codes on x86-64 with tile registers (AMX), as assembly.

A tile register holds 16 rows of 64 bytes. One instruction multiplies 16 rows of 64 codes by 64
rows of 16 columns, laid out in fours, and adds to 16 x 16 sums in int32. Up to two registers of
rows by two of columns, or one by four, gain their sums while K is walked. Intel 64 and IA-32
Architectures Software Developer's Manual, volume 1, chapter 18 (Programming with Intel AMX).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

#: Rows of a tile register, and int32 columns.
_SIDE = 16
#: Codes of a row that one instruction consumes, and codes of a column that lie together.
STEP = 64
GROUP = 4
_REGISTERS = 8
#: Rows that one call computes at most: their sums stay in L1.
_MOST_ROWS = 128
#: Columns of registers, by rows of registers.
_MOST_ACROSS = {1: 4, 2: 2}
#: Cycles as measured on a Sapphire Rapids server at 2.6 GHz: of configuring the registers and
#: releasing them, until a product may be added to, and of a line that is loaded.
_CONFIGURE = 240.0
_LATENCY = 52.0
_PER_LINE = 0.5
#: Cycles for each element outside of the loop: encoding and storing.
_PER_ELEMENT = 0.5
#: What the names of functions with such code begin with.
PREFIX = "edgeopt_amx"
#: The symbol of a model that uses tile registers: what runs it asks the kernel for them first.
USES_TILES = "edgeopt_uses_tiles"


@dataclass(frozen=True, slots=True)
class AmxTile:
    """A tile of rows and columns, the latter a multiple of 16; dtype: that of the rows' codes."""

    dtype: str
    height: int
    width: int

    method: ClassVar[str] = "amx"
    step: ClassVar[int] = STEP
    group: ClassVar[int] = GROUP
    #: Groups of every column that lie in front of those of B.
    lead: ClassVar[int] = 0
    rows_of_register: ClassVar[int] = _SIDE

    @property
    def down(self) -> int:
        """Registers of rows that are multiplied together."""
        return 1 if self.height <= _SIDE else 2

    @property
    def across(self) -> int:
        """Registers of columns that are multiplied together."""
        return self.width // _SIDE

    @property
    def blocks(self) -> int:
        """How often the loop over K runs: the fewest blocks of rows that registers hold."""
        return -(-self.height // (self.down * _SIDE))

    @property
    def rows(self) -> int:
        """Rows in a register."""
        return self.height // (self.blocks * self.down)

    @property
    def name(self) -> str:
        """Name the function that computes the tile."""
        return f"{PREFIX}_{self.dtype}_{self.height}x{self.width}"

    @property
    def fits(self) -> bool:
        """Whether the registers suffice, and rows fill their registers alike."""
        whole = self.rows * self.blocks * self.down == self.height
        return whole and self.width % _SIDE == 0 and 1 <= self.across <= _MOST_ACROSS[self.down]

    def work(self, steps: int) -> float:
        """Estimate the cycles of one call with so many steps of K."""
        products = self.rows * self.down * self.across
        lines = self.rows * self.down + _SIDE * self.across
        step = max(float(products), _PER_LINE * lines, _LATENCY)
        return (
            _CONFIGURE
            + self.blocks * (steps * step + products)
            + _PER_ELEMENT * self.height * self.width
        )


def tiles_of(dtype: str, rows: int) -> Iterator[AmxTile]:
    """List the tiles for so many rows: those of equal parts, each as large as may be."""
    heights: dict[int, None] = {}
    for most in (_MOST_ROWS, 2 * _SIDE, _SIDE):
        part = -(-rows // -(-rows // most))
        down = 1 if part <= _SIDE else 2
        blocks = -(-part // (down * _SIDE))
        heights[-(-part // (blocks * down)) * blocks * down] = None
    for height in heights:
        for across in range(1, max(_MOST_ACROSS.values()) + 1):
            tile = AmxTile(dtype, height, across * _SIDE)
            if tile.fits:
                yield tile


@cache
def write_amx_tile(tile: AmxTile) -> str:
    """Write the LLVM module of one tile: int name(A, B, C, steps of K).

    A is [K / 64, height, 64] of the tile's dtype and B is int8 [K / 4, width, 4]; C, which is
    overwritten, is int32 [height, width]. All are contiguous.
    """
    assert tile.fits
    sums, left, _ = _places(tile)
    setup = configure(dict.fromkeys((*sums, *left), tile.rows))
    return write_function(tile.name, setup, _walk(tile), arguments=4)


def write_function(name: str, setup: str, lines: list[str], *, arguments: int) -> str:
    """Write the LLVM module of a function of assembly, whose operands come after each other.

    Three pointers, the steps of K if there are four arguments, and what LDTILECFG reads.
    """
    text = "\\0A".join(lines)
    scratch = ("rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11")
    clobbers = ",".join(f"~{{{each}}}" for each in (*scratch, "memory", "cc", "dirflag", "flags"))
    given = ["ptr %a", "ptr %b", "ptr %c", "i64 %k"][:arguments]
    operands = ",".join(["r"] * (arguments + 1))
    return (
        f"@{USES_TILES} = weak_odr constant i8 1\n"
        f"@{name}_setup = linkonce_odr hidden constant [64 x i8] "
        f'c"{setup}", align 64\n'
        f"define linkonce_odr hidden i32 @{name}"
        f"({', '.join(given)}) noinline nounwind {{\n"
        f'  call void asm sideeffect "{text}", "{operands},{clobbers}"'
        f"({', '.join(given)}, ptr @{name}_setup)\n"
        "  ret i32 0\n}\n"
    )


def configure(rows: dict[int, int]) -> str:
    """Spell the 64 bytes that LDTILECFG reads: palette 1, bytes of a row, rows by register.

    Registers that are not named have 16 rows.
    """
    data = bytearray(64)
    data[0] = 1
    for register in range(_REGISTERS):
        data[16 + 2 * register] = 4 * _SIDE
        data[48 + register] = rows.get(register, _SIDE)
    return "".join(f"\\{value:02X}" for value in data)


def _places(tile: AmxTile) -> tuple[list[int], list[int], list[int]]:
    """List the registers of sums, of rows and of columns."""
    sums = tile.down * tile.across
    left, right = sums + tile.down, min(_REGISTERS, sums + tile.down + tile.across)
    return list(range(sums)), list(range(sums, left)), list(range(left, right))


def _walk(tile: AmxTile) -> list[str]:
    """Walk blocks of rows, and K for each.

    A, B, C and the steps of K are $0 to $3. rcx and rdx point to a block's rows and sums, r8 and r9
    to a step's rows and columns; r10 and rsi count, and r11 and rax are the bytes from line to
    line.
    """
    sums, _, _ = _places(tile)
    line, block = 4 * tile.width, tile.rows * tile.down
    return [
        "ldtilecfg ($4)",
        "movq $0, %rcx",
        "movq $2, %rdx",
        f"movl $${tile.blocks}, %esi",
        f"movl $${STEP}, %r11d",
        f"movl $${line}, %eax",
        "1:",
        *(f"tilezero %tmm{each}" for each in sums),
        "movq %rcx, %r8",
        "movq $1, %r9",
        "movq $3, %r10",
        "2:",
        *_multiply_step(tile),
        f"addq $${tile.height * STEP}, %r8",
        f"addq $${STEP // GROUP * line}, %r9",
        "decq %r10",
        "jne 2b",
        *(f"tilestored %tmm{each}, {_store(tile, each)}(%rdx,%rax,1)" for each in sums),
        f"addq $${block * STEP}, %rcx",
        f"addq $${block * line}, %rdx",
        "decl %esi",
        "jne 1b",
        "tilerelease",
    ]


def _store(tile: AmxTile, register: int) -> int:
    """Find a register of sums in C, in bytes."""
    row, column = divmod(register, tile.across)
    return row * tile.rows * 4 * tile.width + column * 4 * _SIDE


def _multiply_step(tile: AmxTile) -> list[str]:
    """Multiply 64 codes of each row; what is loaded is used at once by what has been."""
    sums, left, right = _places(tile)
    multiply = "tdpbusd" if tile.dtype == "uint8" else "tdpbssd"
    lines = [
        f"tileloadd {row * tile.rows * STEP}(%r8,%r11,1), %tmm{register}"
        for row, register in enumerate(left)
    ]
    for column in range(tile.across):
        register = right[column % len(right)]
        lines.append(f"tileloadd {column * 4 * _SIDE}(%r9,%rax,1), %tmm{register}")
        lines += [
            f"{multiply} %tmm{register}, %tmm{each}, %tmm{sums[row * tile.across + column]}"
            for row, each in enumerate(left)
        ]
    return lines
