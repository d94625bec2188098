"""One row of floats times a matrix on 64-bit ARM, as assembly.

What several k need of B is loaded four registers at a time. Where the row of results is short, each
sum is split into several, so that multiplications need not wait for each other; what bounds the
loop then are its loads, one for each multiplication and those of A.

A core that issues in program order waits for the address that the load before moved, and at the
first multiplication for what it reads. There all free registers are loaded in pairs, at distances
from one address, before any is used: 2.3 to 2.9 cycles a multiplication instead of 3.5 to 3.9 in
LLVM's model of Cortex-A53.
"""

from functools import cache

from edgeopt.compile.kernels.microkernel import (
    MOST_LOADED,
    PIECES,
    REGISTERS,
    SINGLE,
    UNROLL,
    clear_vectors,
    load_vectors,
    store_together,
    walk_pieces,
    write_function,
)

#: The fifth argument of a function that has one: the first three are in and out, as $4 to $6.
_STARTS = "$7"
#: Bytes of a register, and how far beyond an address pairs are loaded (Arm's architecture reference
#: manual, LDP: seven bits of registers, with their sign).
_VECTOR, _FARTHEST = 16, 64 * 16
#: Sums that hide the latency of a multiplication: 4 cycles by 2 a cycle on Cortex-A76.
FEWEST_CHAINS = 8


def chains_of(sums: int, most: int) -> int:
    """Count the partial sums that each sum is split into, for the latency of multiplications.

    A power of two, which divides any turn; at most so many.
    """
    chains = 1
    while chains < most and sums * chains < FEWEST_CHAINS:
        chains *= 2
    return chains


def add_chains(sums: int, chains: int, add: str) -> list[str]:
    """Add up the partial sums, those of each chain in a row of registers, as a tree."""
    lines = []
    while chains > 1:
        chains //= 2
        apart = sums * chains
        lines += [f"{add} v{i}.4s, v{i}.4s, v{i + apart}.4s" for i in range(apart)]
    return lines


def row_fits_registers(sums: int) -> bool:
    """Tell whether the sums of one row fit beside a load of B and one of A."""
    return sums + 2 * MOST_LOADED <= REGISTERS


def row_runs_ahead(sums: int) -> bool:
    """Tell whether the sums of one row fit beside two loads of B and one of A."""
    return sums + 3 * MOST_LOADED <= REGISTERS


def name_row(sums: int, *, paired: bool) -> str:
    """Name the function that computes one row times a matrix, plus what the sums start from."""
    return f"edgeopt_row_{'pairs_' if paired else ''}{sums * SINGLE.lanes}"


@cache
def write_row(sums: int, *, paired: bool) -> str:
    """Write the LLVM module of one row: int row(A, B, C, K, S).

    paired: for cores that issue in program order. A is [K], B is [K, 4 * sums]; C, which is
    overwritten, and S, which the sums start from, are [4 * sums]. All are float32 and contiguous. K
    may be zero.
    """
    assert row_fits_registers(sums)
    chains, ahead = chains_of(sums, UNROLL), row_runs_ahead(sums)
    left = sums * chains
    pieces = {
        steps: [
            _load_left(left, steps),
            *(
                multiply_paired(sums, steps, chains=chains)
                if paired
                else multiply_row(sums, steps, ahead=ahead, chains=chains)
            ),
        ]
        for steps in PIECES
    }
    parts = [list(range(sums))[i : i + MOST_LOADED] for i in range(0, sums, MOST_LOADED)]
    lines = [
        f"mov x11, {_STARTS}",
        *(load_vectors(part, "x11") for part in parts),
        *clear_vectors(list(range(sums, left))),
        *walk_pieces(pieces),
        *add_chains(sums, chains, "fadd"),
        *(store_together(part, "$2") for part in parts),
    ]
    return write_function(name_row(sums, paired=paired), lines, starts=True)


def _load_left(first: int, steps: int) -> str:
    """Load as many values of A, at $0, into registers from the first one on."""
    lanes = SINGLE.lanes
    if steps < lanes:
        return f"ldr {'d' if steps == 2 else 's'}{first}, [$0], #{4 * steps}"
    return load_vectors(list(range(first, first + steps // lanes)), "$0")


def multiply_row(sums: int, steps: int, *, ahead: bool, chains: int = 1) -> list[str]:
    """Multiply rows of B, at $1, by values of A, which lie in the registers after the sums.

    Ahead, where registers suffice, a load precedes the multiplications that use the one before:
    cores in program order would wait for it. Each sum has so many registers, which take turns.
    """
    first = sums * chains + MOST_LOADED
    loads: list[str] = []
    parts: list[list[str]] = []
    for start in range(0, sums * steps, MOST_LOADED):
        places = range(start, min(start + MOST_LOADED, sums * steps))
        skip = MOST_LOADED if ahead and len(loads) % 2 else 0
        right = [first + skip + place - start for place in places]
        loads.append(load_vectors(right, "$1"))
        parts.append(
            [_multiply_place((sums, chains), *each) for each in zip(places, right, strict=True)]
        )
    if not ahead:
        return [line for load, part in zip(loads, parts, strict=True) for line in (load, *part)]
    lines = [loads[0]]
    for load, part in zip([*loads[1:], ""], parts, strict=True):
        lines += [*([load] if load else []), *part]
    return lines


def multiply_paired(
    sums: int, steps: int, *, chains: int = 1, registers: int = REGISTERS
) -> list[str]:
    """Multiply rows of B as multiply_row does, by loads that fill all free registers at once.

    registers: how many there are; those from there on hold something else.
    """
    first = sums * chains + MOST_LOADED
    free = (registers - first) // 2 * 2
    lines: list[str] = []
    offset = 0
    for start in range(0, sums * steps, free):
        places = range(start, min(start + free, sums * steps))
        if offset + len(places) * _VECTOR > _FARTHEST:
            lines.append(f"add $1, $1, #{offset}")
            offset = 0
        right = [first + place - start for place in places]
        for pair in (right[i : i + 2] for i in range(0, len(right), 2)):
            names = ", ".join(f"q{each}" for each in pair)
            lines.append(f"{'ldp' if len(pair) == 2 else 'ldr'} {names}, [$1, #{offset}]")
            offset += _VECTOR * len(pair)
        lines += [
            _multiply_place((sums, chains), *each) for each in zip(places, right, strict=True)
        ]
    return [*lines, f"add $1, $1, #{offset}"]


def _multiply_place(row: tuple[int, int], place: int, right: int) -> str:
    """Multiply one vector of B, by its place among all of them, by its value of A."""
    sums, chains = row
    k, column = divmod(place, sums)
    left = f"v{sums * chains + k // SINGLE.lanes}.s[{k % SINGLE.lanes}]"
    return f"fmla v{k % chains * sums + column}.4s, v{right}.4s, {left}"
