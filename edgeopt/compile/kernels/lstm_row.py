"""One step of an LSTM for one row on 64-bit ARM, as assembly: sums stay in registers for the gates.

The gates' functions are quotients of powers of two, which take no limits and no polynomial of high
degree. With E = e^-x = 2^(n + f), n whole and f in [-1/2, 1/2),

    r = 1.442704 - f / 2 + 0.057618 f^2,    2^f = (r + f) / r within 4.4e-7 relative (minimax),

and with e = 2^n (r + f): sigmoid(x) = r / (r + e), and tanh(x / 2) = (r - e) / (r + e).

-x / ln 2 is what the sums are: weights and biases come multiplied. FCVTZS makes it a whole number
of 2^-26, limited to +-32, of which a shift leaves f as a fraction of 2^32. r and r + f lie in
[1, 2), where a float counts in steps of 2^-23 from its exponent's bits on: those of r are two
SQRDMULH away, and those of e are r's plus n + f in such steps.

Over all x sigmoid is within 2.4e-7 and tanh within 4e-7 absolute, measured 1.8e-7 and 2.7e-7,
and neither leaves its range. The cell's state and the output have one division each, of products:
a division of four floats keeps a Cortex-A72 busy for 34 cycles. No product overflows, as no factor
of a divisor exceeds 2^33. NaN counts as 0.
"""

import struct
from functools import cache

from edgeopt.compile.kernels.microkernel import (
    load_vectors,
    store_together,
    walk_depth,
)
from edgeopt.compile.kernels.row_tile import multiply_paired, multiply_row
from edgeopt.compile.kernels.straight_line import Step, arrange_steps

#: What the sums of a gate are of what goes into its function: input, output, forget, cell.
LOG2_E = 1.4426950408889634
GATE_FACTORS = (-LOG2_E, -LOG2_E, -LOG2_E, -2 * LOG2_E)

#: Coefficients of r, of which that of f must be -1/2.
_FREE, _SQUARE = 1.4427040618647209, 0.05761803247689757
#: Registers of constants: bits of the free term, -1/2 in steps of 2^-22, and single values.
_FREE_AT, _HALF_AT, _VALUES_AT = 29, 30, 31
_VALUE_SQUARE, _VALUE_FACTOR = (f"v{_VALUES_AT}.s[{lane}]" for lane in range(2))
_BITS = 26
#: Steps of the sum for each branch, and for each load of the state.
_UNROLL, _LANES = 32, 16
_LOADED = 4
_SIMPLE, _DIVISION = 4, 34
#: Vectors of units whose sums, four each, fit beside loads of A and B and the constants.
MOST_VECTORS = (_FREE_AT - 3 * _LOADED) // 4


def name_cell(vectors: int, *, paired: bool) -> str:
    """Name the function that computes a step, so many vectors of units at a time."""
    return f"edgeopt_lstm_{'pairs_' if paired else ''}{4 * vectors}"


@cache
def write_cell(vectors: int, *, paired: bool) -> str:
    """Write the LLVM module of a step: int lstm(A, B, C, K, S, H, Y, N).

    paired: for cores that issue in program order, see row_tile. A is the state [K], B [N, K, 4, 4 *
    vectors] and S [N, 4, 4 * vectors] what the sums start from, both times GATE_FACTORS; C, which
    is updated, is the cell's state [N, 4 * vectors]. H and Y, which may be one, are the new state,
    likewise. All are float32 and contiguous. K may be zero, N may not.
    """
    assert 0 < vectors <= MOST_VECTORS
    sums = 4 * vectors
    values = load_vectors(list(range(sums, sums + _LOADED)), "$0")

    def multiply(steps: int) -> list[str]:
        if paired:
            return multiply_paired(sums, steps, registers=_FREE_AT)
        return multiply_row(sums, steps, ahead=True)

    turn = [values, *multiply(_LANES)] * (_UNROLL // _LANES)
    step = [f"ldr s{sums}, [$0], #4", *multiply(1)]
    cells = list(range(sums, sums + vectors))
    outputs = list(range(vectors, 2 * vectors))
    lines = [
        *_load_constants(),
        "5:",
        *(load_vectors(part, "$3") for part in _parts(list(range(sums)))),
        "mov $0, $7",
        *walk_depth(turn, step, unroll=_UNROLL, count="$8"),
        "mov x9, $2",
        *(load_vectors(part, "x9") for part in _parts(cells)),
        *_update(vectors, cells, outputs),
        *(store_together(part, "$2") for part in _parts(cells)),
        *(store_together(part, "$4") for part in _parts(outputs)),
        *(store_together(part, "$5") for part in _parts(outputs)),
        "subs $6, $6, #1",
        "b.ne 5b",
    ]
    return _write_function(name_cell(vectors, paired=paired), lines)


def _parts(registers: list[int]) -> list[list[int]]:
    return [registers[i : i + _LOADED] for i in range(0, len(registers), _LOADED)]


def _load_constants() -> list[str]:
    """Fill the registers of constants."""
    lines = []
    for where, value in (
        (f"v{_FREE_AT}.4s", _bits(_FREE)),
        (f"v{_HALF_AT}.4s", -(1 << 21)),
        (_VALUE_SQUARE, round(_SQUARE * 2**21)),
        (_VALUE_FACTOR, _bits(-2 * LOG2_E)),
    ):
        low, high = value & 0xFFFF, value >> 16 & 0xFFFF
        lines += [f"mov w9, #{low}", f"movk w9, #{high}, lsl #16"]
        lines.append(f"dup {where}, w9" if where.endswith("4s") else f"mov {where}, w9")
    return lines


def _bits(value: float) -> int:
    """Return a float32 as the whole number that its bits are."""
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return int(bits)


def _update(vectors: int, cells: list[int], outputs: list[int]) -> list[str]:
    """Write what the gates do to the cell's state and to the state, vector after vector."""
    steps: list[Step] = []
    homes: dict[str, int] = {}
    for place in range(vectors):
        for gate in range(4):
            homes[f"sum{gate}.{place}"] = gate * vectors + place
        homes[f"cell.{place}"] = homes[f"new.{place}"] = cells[place]
        homes[f"output.{place}"] = outputs[place]
        steps += _update_vector(place)
    taken = set(homes.values())
    free = [register for register in range(_FREE_AT) if register not in taken]
    return arrange_steps(steps, homes, free)


def _update_vector(place: int) -> list[Step]:
    """List the steps of one vector of units."""

    def make(name: str, operation: str, *names: str) -> Step:
        """Make a step of values of this vector; fmla adds to the first that it reads."""
        reads = tuple(f"{each}.{place}" for each in names)
        latency = _DIVISION if operation == "fdiv" else _SIMPLE
        if operation == "fmla":
            text = "fmla v{0}.4s, v{2}.4s, v{3}.4s"
            result = f"{name}.{place}"
            return Step(
                result=result, text=text, reads=reads, latency=latency, replaces=True, piece=place
            )
        text = operation if " " in operation else f"{operation} v{{0}}.4s, v{{1}}.4s, v{{2}}.4s"
        return Step(result=f"{name}.{place}", text=text, reads=reads, latency=latency, piece=place)

    def raise_two(gate: str, exponent: str) -> list[Step]:
        """List the steps from -x / ln 2 to r and e."""
        return [
            make(f"whole{gate}", f"fcvtzs v{{0}}.4s, v{{1}}.4s, #{_BITS}", exponent),
            make(f"part{gate}", f"shl v{{0}}.4s, v{{1}}.4s, #{32 - _BITS}", f"whole{gate}"),
            make(f"a{gate}", f"sqrdmulh v{{0}}.4s, v{{1}}.4s, {_VALUE_SQUARE}", f"part{gate}"),
            make(f"b{gate}", f"add v{{0}}.4s, v{{1}}.4s, v{_HALF_AT}.4s", f"a{gate}"),
            make(f"c{gate}", "sqrdmulh", f"part{gate}", f"b{gate}"),
            make(f"r{gate}", f"add v{{0}}.4s, v{{1}}.4s, v{_FREE_AT}.4s", f"c{gate}"),
            make(f"steps{gate}", f"sshr v{{0}}.4s, v{{1}}.4s, #{_BITS - 23}", f"whole{gate}"),
            make(f"e{gate}", "add", f"steps{gate}", f"r{gate}"),
            make(f"d{gate}", "fadd", f"r{gate}", f"e{gate}"),
        ]

    gates = [raise_two(str(gate), f"sum{gate}") for gate in range(4)]
    woven = [step for steps in zip(*gates, strict=True) for step in steps]
    return [
        *woven,
        # c' = c r2 / d2 + r0 (r3 - e3) / (d0 d3), over the common divisor.
        make("n3", "fsub", "r3", "e3"),
        make("n03", "fmul", "r0", "n3"),
        make("d03", "fmul", "d0", "d3"),
        make("n2", "fmul", "cell", "r2"),
        make("kept", "fmul", "n2", "d03"),
        make("n", "fmla", "kept", "n03", "d2"),
        make("d", "fmul", "d03", "d2"),
        make("new", "fdiv", "n", "d"),
        make("exponent", f"fmul v{{0}}.4s, v{{1}}.4s, {_VALUE_FACTOR}", "new"),
        *raise_two("4", "exponent"),
        make("n4", "fsub", "r4", "e4"),
        make("n14", "fmul", "r1", "n4"),
        make("d14", "fmul", "d1", "d4"),
        make("output", "fdiv", "n14", "d14"),
    ]


def _write_function(name: str, lines: list[str]) -> str:
    """Write the module: $0 moves along A, $1 to $6 are B, C, S, H, Y and N, $7 and $8 A and K."""
    clobbers = ["x9", "x10", "memory", "cc", *(f"v{i}" for i in range(32))]
    constraints = ",".join(
        [*["=&r"] * 7, "r", "r", *"123456", *(f"~{{{name}}}" for name in clobbers)]
    )
    text = "\\0A".join(lines)
    made = "{ptr, ptr, ptr, ptr, ptr, ptr, i64}"
    return (
        f"define linkonce_odr hidden i32 @{name}(ptr %a, ptr %b, ptr %c, i64 %k, "
        "ptr %s, ptr %h, ptr %y, i64 %n) noinline nounwind {\n"
        f'  %done = call {made} asm sideeffect "{text}", "{constraints}"'
        "(ptr %a, i64 %k, ptr %b, ptr %c, ptr %s, ptr %h, ptr %y, i64 %n)\n"
        "  ret i32 0\n}\n"
    )
