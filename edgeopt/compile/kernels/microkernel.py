"""The inner loop of a product of floats on 64-bit ARM, as assembly.

A tile of height x vectors sums lives in registers while K is walked. A is packed so that the
values of one k lie together, and so is B: what several k need is loaded four registers at a time,
each load with its pointer update, between height * vectors multiplications by element for each k.
LLVM's own loop has a quarter more instructions, and spills above 4 x 16.

Cores with arithmetic in half multiply twice as many values an instruction. Their sums of a few k
stay in half, and what those give is summed in float32: of values with a normal distribution, the
largest error of a product is then 1.2e-3 of its largest value whatever K is; all in half it
is 4e-3 for K = 384 and 2e-2 for K = 4608.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

#: Vector registers.
REGISTERS = 32
#: Steps of K for each branch: 8 x 12 then takes 1.06 instructions per multiplication.
UNROLL = 16
#: Steps of K that are unrolled: in the loop, and in what follows it.
PIECES = (UNROLL, 8, 4, 2, 1)
#: Registers that one structure load fills at most.
MOST_LOADED = 4
#: Steps of K whose sums stay in half: a multiple of what is unrolled.
HALF_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a tile multiplies: values of a register, and how the assembly spells them."""

    name: str
    dtype: str
    lanes: int
    element: str

    @property
    def vector(self) -> str:
        """The suffix of a whole register."""
        return f"{self.lanes}{self.element}"


SINGLE = Numbers("", "float32", 4, "s")
HALF = Numbers("half_", "float16", 8, "h")


def fits_registers(height: int, vectors: int, numbers: Numbers = SINGLE) -> bool:
    """Tell whether sums, one k of A and one k of B fit the register file."""
    loaded = -(-height // numbers.lanes)
    if vectors > MOST_LOADED or loaded > MOST_LOADED:
        return False
    return height * vectors + vectors + loaded <= REGISTERS


def name_tile(height: int, vectors: int, numbers: Numbers = SINGLE) -> str:
    """Name the function that computes one tile."""
    return f"edgeopt_{numbers.name}tile_{height}x{vectors * numbers.lanes}"


@cache
def count_instructions(height: int, vectors: int, numbers: Numbers = SINGLE) -> int:
    """Count the instructions of one turn of a tile's loop, which is the same K for any tile."""
    turn = len(multiply_steps(height, vectors, numbers)) + 2
    if numbers is SINGLE:
        return turn
    return turn + len(_add_halves(_sums_of(height, vectors, numbers))) * UNROLL // HALF_DEPTH


@cache
def write_tile(height: int, vectors: int, numbers: Numbers = SINGLE) -> str:
    """Write the LLVM module of one tile: int tile(A, B, C, K).

    A is [K, height rounded up to the lanes], B is [K, lanes * vectors]; C, which is overwritten,
    is [height, lanes * vectors] of float32. All are contiguous.
    """
    assert fits_registers(height, vectors, numbers)
    sums = _sums_of(height, vectors, numbers)
    pieces = multiply_pieces(height, vectors, numbers)
    if numbers is SINGLE:
        lines = [*clear_vectors(sums), *walk_pieces(pieces), *store_vectors(sums)]
    else:
        lines = _walk_halves(pieces, sums)
    return write_function(name_tile(height, vectors, numbers), lines)


def _walk_halves(pieces: Mapping[int, list[str]], sums: list[int]) -> list[str]:
    """Walk K by parts, whose sums in half are added to those of float32 at $2."""
    return [
        "movi v0.4s, #0",
        "movi v1.4s, #0",
        "mov x13, $2",
        *["stp q0, q1, [x13], #32"] * len(sums),
        "mov x11, $3",
        "5:",
        f"mov x12, #{HALF_DEPTH}",
        "cmp x11, x12",
        "csel x12, x11, x12, lo",
        *clear_vectors(sums),
        *walk_pieces(pieces, count="x12"),
        *_add_halves(sums),
        "subs x11, x11, x12",
        "b.ne 5b",
    ]


def _add_halves(sums: list[int]) -> list[str]:
    """Add registers of halves to the floats that lie at $2, one after another."""
    lines = ["mov x13, $2"]
    for register in sums:
        lines += [
            f"fcvtl v0.4s, v{register}.4h",
            f"fcvtl2 v1.4s, v{register}.8h",
            "ldp q2, q3, [x13]",
            "fadd v0.4s, v0.4s, v2.4s",
            "fadd v1.4s, v1.4s, v3.4s",
            "stp q0, q1, [x13], #32",
        ]
    return lines


def _sums_of(height: int, vectors: int, numbers: Numbers) -> list[int]:
    """List the registers of a tile's sums, row by row.

    Only the first sixteen registers hold halves to multiply by (Arm's architecture reference
    manual, FMLA by element), so that the values of A come first there, and the sums last.
    """
    first = 0 if numbers is SINGLE else REGISTERS - height * vectors
    return list(range(first, first + height * vectors))


def walk_depth(turn: list[str], step: list[str], *, unroll: int, count: str = "$3") -> list[str]:
    """Repeat a step as often as count says: a turn does as many as unroll says, a power of two."""
    return [
        f"lsr x9, {count}, #{unroll.bit_length() - 1}",
        f"and x10, {count}, #{unroll - 1}",
        "cbz x9, 2f",
        "1:",
        *turn,
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


def walk_pieces(pieces: Mapping[int, list[str]], *, count: str = "$3") -> list[str]:
    """Walk K by the longest of the PIECES in a loop, then by each of the others that is left.

    A loop of one k would do so with more loads and branches, and cores in program order wait for
    each load.
    """
    longest, *others = PIECES
    lines = [f"lsr x9, {count}, #{longest.bit_length() - 1}", "cbz x9, 2f", "1:"]
    lines += [*pieces[longest], "subs x9, x9, #1", "b.ne 1b", "2:"]
    lines += [f"tst {count}, #{longest - 1}", "b.eq 4f"]
    for steps in others:
        lines += [f"tbz {count}, #{steps.bit_length() - 1}, 3f", *pieces[steps], "3:"]
    return [*lines, "4:"]


#: A function of no instruction, which LLVM takes for one that a loop should not be unrolled around.
APART = "edgeopt_apart"
#: What stands in a loop that LLVM is to leave as it is.
TURN = "edgeopt_turn"


def write_apart() -> str:
    """Write the LLVM module of int edgeopt_apart(): nothing, but as assembly that stays there."""
    return _write_nothing(APART, "")


def write_turn() -> str:
    """Write the LLVM module of int edgeopt_turn(): assembly that no loop is unrolled around."""
    return _write_nothing(TURN, " noduplicate")


def _write_nothing(name: str, attribute: str) -> str:
    return (
        f"define linkonce_odr hidden i32 @{name}() alwaysinline nounwind {{\n"
        f'  call void asm sideeffect "", ""(){attribute}\n'
        "  ret i32 0\n}\n"
    )


def write_function(name: str, lines: list[str], *, starts: bool = False) -> str:
    """Write the LLVM module of int name(A, B, C, K): $0, $1, $2 and $3 of the assembly.

    With starts it has a fifth argument, a pointer that the assembly must not move. All vector
    registers and x9 to x13 may be changed.
    """
    clobbers = [
        *(f"x{i}" for i in range(9, 14)),
        "memory",
        "cc",
        *(f"v{i}" for i in range(REGISTERS)),
    ]
    fixed = ["r", "0", "1", "2", *(["r"] if starts else [])]
    constraints = ",".join(
        ["=&r", "=&r", "=&r", *fixed, *(f"~{{{name}}}" for name in clobbers)],
    )
    more = ", ptr %s" if starts else ""
    text = "\\0A".join(lines)
    return (
        f"define linkonce_odr hidden i32 @{name}"
        f"(ptr %a, ptr %b, ptr %c, i64 %k{more}) noinline nounwind {{\n"
        f'  %done = call {{ptr, ptr, ptr}} asm sideeffect "{text}", "{constraints}"'
        f"(i64 %k, ptr %a, ptr %b, ptr %c{more})\n"
        "  ret i32 0\n}\n"
    )


def multiply_pieces(height: int, vectors: int, numbers: Numbers) -> dict[int, list[str]]:
    """Multiply as many k as each of the PIECES."""
    return {steps: multiply_steps(height, vectors, numbers, steps=steps) for steps in PIECES}


def multiply_steps(
    height: int, vectors: int, numbers: Numbers, *, steps: int = UNROLL
) -> list[str]:
    """Multiply so many k, a power of two; loads fill their registers when all were used."""
    first = height * vectors if numbers is SINGLE else 0
    for_left, for_right = _choose_loads((height, vectors), numbers, steps)
    left = list(range(first, first + for_left))
    right = list(range(first + for_left, first + for_left + for_right))
    of_k = -(-height // numbers.lanes)
    lines = []
    for k in range(steps):
        if k * of_k % for_left == 0:
            lines += load_all(left, "$0")
        values = left[k * of_k % for_left :][:of_k]
        for column in range(vectors):
            place = (k * vectors + column) % for_right
            if place == 0:
                lines += load_all(right, "$1")
            lines += _multiply_column((height, vectors), column, (values, right[place]), numbers)
    return lines


def load_all(registers: list[int], pointer: str) -> list[str]:
    """Load registers in their order, as many by one instruction as it can fill."""
    parts = range(0, len(registers), MOST_LOADED)
    return [load_vectors(registers[i : i + MOST_LOADED], pointer) for i in parts]


def _choose_loads(tile: tuple[int, int], numbers: Numbers, steps: int) -> tuple[int, int]:
    """Choose how many registers of A are filled at a time, and of B: the fewest loads that fit.

    Among these, those that stand together most: a core in program order lets a load wait for the
    multiplications before it, and those behind it wait for the load. For A all values of one k
    or of several are loaded.
    """
    height, vectors = tile
    free = REGISTERS - height * vectors
    of_k = -(-height // numbers.lanes)

    def cost(chosen: tuple[int, int]) -> tuple[int, int, int]:
        for_left, for_right = chosen
        pauses = {k * vectors for k in range(0, steps, for_left // of_k)}
        pauses |= set(range(0, steps * vectors, for_right))
        of_left, of_right = (-(-count // MOST_LOADED) for count in chosen)
        loads = steps * of_k // for_left * of_left + steps * vectors // for_right * of_right
        return loads, len(pauses), sum(chosen)

    fitting = [
        (for_left, for_right)
        for for_left in range(of_k, free, of_k)
        for for_right in range(1, free - for_left + 1)
        if steps * of_k % for_left == 0 and steps * vectors % for_right == 0
    ]
    return min(fitting, key=cost)


def _multiply_column(
    tile: tuple[int, int], column: int, registers: tuple[list[int], int], numbers: Numbers
) -> list[str]:
    """Multiply one vector of B by all values of one k of A."""
    height, vectors = tile
    left, right = registers
    sums = _sums_of(height, vectors, numbers)
    lanes, element, vector = numbers.lanes, numbers.element, numbers.vector
    return [
        f"fmla v{sums[row * vectors + column]}.{vector}, v{right}.{vector}, "
        f"v{left[row // lanes]}.{element}[{row % lanes}]"
        for row in range(height)
    ]


def clear_vectors(registers: list[int]) -> list[str]:
    """Make zeros of registers."""
    return [f"movi v{register}.4s, #0" for register in registers]


def load_vectors(registers: list[int], pointer: str) -> str:
    """Load at most four neighbouring registers and move the pointer behind what was read."""
    assert len(registers) <= MOST_LOADED
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


def store_together(registers: list[int], pointer: str) -> str:
    """Store at most four neighbouring registers by one instruction, as they are loaded."""
    return load_vectors(registers, pointer).replace("ld", "st", 1)
