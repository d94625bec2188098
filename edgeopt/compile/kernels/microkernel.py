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
    step = _multiply_step(height, vectors)
    lines = [
        *(f"movi v{i}.4s, #0" for i in range(sums)),
        f"lsr x9, $3, #{_UNROLL.bit_length() - 1}",
        f"and x10, $3, #{_UNROLL - 1}",
        "cbz x9, 2f",
        "1:",
        *step * _UNROLL,
        "subs x9, x9, #1",
        "b.ne 1b",
        "2:",
        "cbz x10, 4f",
        "3:",
        *step,
        "subs x10, x10, #1",
        "b.ne 3b",
        "4:",
        *_store_sums(sums),
    ]
    clobbers = ["x9", "x10", "memory", "cc", *(f"v{i}" for i in range(_REGISTERS))]
    constraints = ",".join(
        ["=&r", "=&r", "=&r", "r", "0", "1", "2", *(f"~{{{name}}}" for name in clobbers)]
    )
    text = "\\0A".join(lines)
    return (
        f"define linkonce_odr hidden i32 @{name_tile(height, vectors)}"
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
        _load(right, "$1"),
        _load(left, "$0"),
        *(
            f"fmla v{row * vectors + column}.4s, v{right[column]}.4s, "
            f"v{left[row // _LANES]}.s[{row % _LANES}]"
            for column in range(vectors)
            for row in range(height)
        ),
    ]


def _load(registers: list[int], pointer: str) -> str:
    if len(registers) == 1:
        return f"ldr q{registers[0]}, [{pointer}], #16"
    if len(registers) == 2:
        return f"ldp q{registers[0]}, q{registers[1]}, [{pointer}], #32"
    # $ would start an operand: braces need no escape outside of alternatives' "$(".
    listed = ", ".join(f"v{register}.4s" for register in registers)
    return f"ld1 {{{listed}}}, [{pointer}], #{16 * len(registers)}"


def _store_sums(sums: int) -> list[str]:
    pairs = [f"stp q{i}, q{i + 1}, [$2], #32" for i in range(0, sums - 1, 2)]
    return [*pairs, *([f"str q{sums - 1}, [$2], #16"] if sums % 2 else [])]
