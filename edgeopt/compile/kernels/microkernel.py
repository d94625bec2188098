"""The inner loop of a float32 product on 64-bit ARM, as assembly.

A tile of height x 4 * vectors sums lives in registers while K is walked. A is packed so that the
values of one k lie together, and so is B: what several k need is loaded four registers at a time,
each load with its pointer update, between height * vectors multiplications by element for each k.
LLVM's own loop has a quarter more instructions, and spills above 4 x 16.
"""

from functools import cache

#: Vector registers, and float32 lanes of each.
_REGISTERS = 32
_LANES = 4
#: Steps of K for each branch: 8 x 12 then takes 1.06 instructions per multiplication.
_UNROLL = 16
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
def count_instructions(height: int, vectors: int) -> int:
    """Count the instructions of one turn of a tile's loop, which is the same K for any tile."""
    return len(_multiply_steps(height, vectors)) + 2


@cache
def write_tile(height: int, vectors: int) -> str:
    """Write the LLVM module of one tile: int tile(A, B, C, K).

    A is [K, height rounded up to 4], B is [K, 4 * vectors] and C, which is overwritten, is
    [height, 4 * vectors]; all are float32 and contiguous.
    """
    assert fits_registers(height, vectors)
    sums = list(range(height * vectors))
    turn, step = _multiply_steps(height, vectors), _multiply_step(height, vectors)
    lines = [*clear_vectors(sums), *walk_depth(turn, step, unroll=_UNROLL), *store_vectors(sums)]
    return write_function(name_tile(height, vectors), lines)


def walk_depth(turn: list[str], step: list[str], *, unroll: int) -> list[str]:
    """Repeat a step as often as $3 says: a turn does as many as unroll says, a power of two."""
    return [
        f"lsr x9, $3, #{unroll.bit_length() - 1}",
        f"and x10, $3, #{unroll - 1}",
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


def row_fits_registers(sums: int) -> bool:
    """Tell whether the sums of one row fit beside a load of B and one of A."""
    return sums + 2 * _MOST_LOADED <= _REGISTERS


def name_row(sums: int) -> str:
    """Name the function that adds one row times a matrix to vectors of sums."""
    return f"edgeopt_row_{sums * _LANES}"


@cache
def write_row(sums: int) -> str:
    """Write the LLVM module of one row: int row(A, B, C, K).

    A is [K], B is [K, 4 * sums] and C, which is added to, is [4 * sums]; all are float32 and
    contiguous. K may be zero.
    """
    assert row_fits_registers(sums)
    turn = [
        load_vectors(list(range(sums, sums + _MOST_LOADED)), "$0"),
        *_multiply_row(sums, _UNROLL),
    ]
    step = [f"ldr s{sums}, [$0], #4", *_multiply_row(sums, 1)]
    lines = [
        *(f"ldr q{i}, [$2, #{16 * i}]" for i in range(sums)),
        *walk_depth(turn, step, unroll=_UNROLL),
        *store_vectors(list(range(sums))),
    ]
    return write_function(name_row(sums), lines)


def _multiply_row(sums: int, steps: int) -> list[str]:
    """Multiply rows of B by values of A, which lie in the registers after the sums."""
    first = sums + _MOST_LOADED
    lines = []
    for place in range(sums * steps):
        offset = place % _MOST_LOADED
        if offset == 0:
            count = min(_MOST_LOADED, sums * steps - place)
            lines.append(load_vectors(list(range(first, first + count)), "$1"))
        k, column = divmod(place, sums)
        left = f"v{sums + k // _LANES}.s[{k % _LANES}]"
        lines.append(f"fmla v{column}.4s, v{first + offset}.4s, {left}")
    return lines


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


def _multiply_steps(height: int, vectors: int) -> list[str]:
    """Multiply as many k as the loop unrolls; a load fills its registers when all were used."""
    first = height * vectors
    for_left, for_right = _choose_loads(height, vectors)
    left = list(range(first, first + for_left))
    right = list(range(first + for_left, first + for_left + for_right))
    of_k = -(-height // _LANES)
    lines = []
    for k in range(_UNROLL):
        if k * of_k % for_left == 0:
            lines.append(load_vectors(left, "$0"))
        values = left[k * of_k % for_left :][:of_k]
        for column in range(vectors):
            place = (k * vectors + column) % for_right
            if place == 0:
                lines.append(load_vectors(right, "$1"))
            lines += _multiply_column(height, vectors, column, (values, right[place]))
    return lines


def _choose_loads(height: int, vectors: int) -> tuple[int, int]:
    """Choose how many registers a load of A fills, and one of B: the fewest loads that fit.

    A load of A brings all values of one k or of several.
    """
    free = _REGISTERS - height * vectors
    of_k = -(-height // _LANES)

    def loads(chosen: tuple[int, int]) -> tuple[int, int]:
        for_left, for_right = chosen
        return _UNROLL * of_k // for_left + _UNROLL * vectors // for_right, sum(chosen)

    counts = range(1, _MOST_LOADED + 1)
    fitting = [
        (for_left, for_right)
        for for_left in counts
        for for_right in counts
        if for_left % of_k == 0 and _UNROLL * of_k % for_left == 0
        if _UNROLL * vectors % for_right == 0 and for_left + for_right <= free
    ]
    return min(fitting, key=loads)


def _multiply_step(height: int, vectors: int) -> list[str]:
    """Multiply one k: its row of B and its column of A, each loaded by one instruction."""
    sums = height * vectors
    right = list(range(sums, sums + vectors))
    left = list(range(sums + vectors, sums + vectors - (-height // _LANES)))
    lines = [load_vectors(right, "$1"), load_vectors(left, "$0")]
    for column in range(vectors):
        lines += _multiply_column(height, vectors, column, (left, right[column]))
    return lines


def _multiply_column(
    height: int, vectors: int, column: int, registers: tuple[list[int], int]
) -> list[str]:
    """Multiply one vector of B by all values of one k of A."""
    left, right = registers
    return [
        f"fmla v{row * vectors + column}.4s, v{right}.4s, v{left[row // _LANES]}.s[{row % _LANES}]"
        for row in range(height)
    ]


def clear_vectors(registers: list[int]) -> list[str]:
    """Make zeros of registers."""
    return [f"movi v{register}.4s, #0" for register in registers]


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
