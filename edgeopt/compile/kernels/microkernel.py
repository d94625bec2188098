"""The inner loop of a float32 product on 64-bit ARM, as assembly.

A tile of height x 4 * vectors sums lives in registers while K is walked. A is packed so that the
values of one k lie together, and so is B: one k costs two loads with their pointer updates, and
height * vectors multiplications by element. LLVM's own loop has a quarter more instructions, and
spills above 4 x 16.
"""

from functools import cache

#: Vector registers, and float32 lanes of each.
_REGISTERS = 32
_LANES = 4
#: Steps of K for each branch: 8 x 12 then takes 1.09 instructions per multiplication.
_UNROLL = 8
#: Registers that one structure load fills at most.
_MOST_LOADED = 4


def fits_registers(height: int, vectors: int) -> bool:
    """Tell whether sums, one k of A and one k of B fit the register file."""
    loaded = -(-height // _LANES)
    if vectors > _MOST_LOADED or loaded > _MOST_LOADED:
        return False
    return height * vectors + vectors + loaded <= _REGISTERS


def name_tile(height: int, vectors: int) -> str:
    """Name the function that computes one tile."""
    return f"edgeopt_tile_{height}x{vectors * _LANES}"


@cache
def write_tile(height: int, vectors: int) -> str:
    """Write the LLVM module of one tile: int tile(A, B, C, K).

    A is [K, height rounded up to 4], B is [K, 4 * vectors] and C, which is overwritten, is
    [height, 4 * vectors]; all are float32 and contiguous.
    """
    assert fits_registers(height, vectors)
    sums = height * vectors
    lines = [
        *walk_depth(_multiply_step(height, vectors), sums, unroll=_UNROLL),
        *store_vectors(list(range(sums))),
    ]
    return write_function(name_tile(height, vectors), lines)


def walk_depth(step: list[str], sums: int, *, unroll: int) -> list[str]:
    """Repeat a step as often as $3 says, which must be unrolled by a power of two.

    The first so many vector registers hold sums, which begin as zeros.
    """
    return [
        *(f"movi v{i}.4s, #0" for i in range(sums)),
        f"lsr x9, $3, #{unroll.bit_length() - 1}",
        f"and x10, $3, #{unroll - 1}",
        "cbz x9, 2f",
        "1:",
        *step * unroll,
        "subs x9, x9, #1",
        "b.ne 1b",
        "2:",
        "cbz x10, 4f",
        "3:",
        *step,
        "subs x10, x10, #1",
        "b.ne 3b",
        "4:",
    ]


def write_function(name: str, lines: list[str]) -> str:
    """Write the LLVM module of int name(A, B, C, K): $0, $1, $2 and $3 of the assembly.

    All vector registers, x9 and x10 may be changed.
    """
    clobbers = ["x9", "x10", "memory", "cc", *(f"v{i}" for i in range(_REGISTERS))]
    constraints = ",".join(
        ["=&r", "=&r", "=&r", "r", "0", "1", "2", *(f"~{{{name}}}" for name in clobbers)]
    )
    text = "\\0A".join(lines)
    return (
        f"define linkonce_odr hidden i32 @{name}"
        "(ptr %a, ptr %b, ptr %c, i64 %k) noinline nounwind {\n"
        f'  %done = call {{ptr, ptr, ptr}} asm sideeffect "{text}", "{constraints}"'
        "(i64 %k, ptr %a, ptr %b, ptr %c)\n"
        "  ret i32 0\n}\n"
    )


def _multiply_step(height: int, vectors: int) -> list[str]:
    """Multiply one k: its row of B and its column of A, each loaded by one instruction."""
    sums = height * vectors
    right = list(range(sums, sums + vectors))
    left = list(range(sums + vectors, sums + vectors - (-height // _LANES)))
    return [
        load_vectors(right, "$1"),
        load_vectors(left, "$0"),
        *(
            f"fmla v{row * vectors + column}.4s, v{right[column]}.4s, "
            f"v{left[row // _LANES]}.s[{row % _LANES}]"
            for column in range(vectors)
            for row in range(height)
        ),
    ]


def load_vectors(registers: list[int], pointer: str) -> str:
    """Load at most four neighbouring registers and move the pointer behind what was read."""
    assert len(registers) <= _MOST_LOADED
    if len(registers) == 1:
        return f"ldr q{registers[0]}, [{pointer}], #16"
    if len(registers) == 2:
        return f"ldp q{registers[0]}, q{registers[1]}, [{pointer}], #32"
    # $ would start an operand: braces need no escape outside of alternatives' "$(".
    listed = ", ".join(f"v{register}.4s" for register in registers)
    return f"ld1 {{{listed}}}, [{pointer}], #{16 * len(registers)}"


def store_vectors(registers: list[int]) -> list[str]:
    """Store registers one after another at $2."""
    pairs = zip(registers[::2], registers[1::2], strict=False)
    stores = [f"stp q{first}, q{second}, [$2], #32" for first, second in pairs]
    return [*stores, *([f"str q{registers[-1]}, [$2], #16"] if len(registers) % 2 else [])]
