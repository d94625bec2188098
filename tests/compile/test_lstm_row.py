"""The gates of an LSTM in assembly, run instruction by instruction over dense ranges."""

import re
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.compile.kernels.lstm_row import GATE_FACTORS, MOST_VECTORS, write_cell

Lanes = NDArray[np.int32]
SURE = 1e9


def gates_of(vectors: int) -> list[str]:
    """Cut what follows the product out of the assembly, its loads and stores left out."""
    lines = write_cell(vectors, paired=False).split("\\0A")
    rest = lines[lines.index("4:") + 1 :]
    return [line for line in rest if re.match(r"(f|s[hqs]|add)", line)]


def constants_of(vectors: int, size: int) -> dict[int, Lanes]:
    """Run what fills the registers of constants; single values as whole registers of their own."""
    lines = write_cell(vectors, paired=False).split("\\0A")
    value, held = 0, {}
    for line in lines[: lines.index("5:")]:
        numbers = [int(each) for each in re.findall(r"[#v\[](\d+)", line)]
        if line.endswith("lsl #16"):
            value |= numbers[0] << 16
        elif "#" in line:
            value = numbers[0]
        else:
            place = numbers[0] if line.startswith("dup") else 100 + numbers[1]
            held[place] = np.full(size, value, np.uint32).view(np.int32)
    return held


def high_half(a: Lanes, b: Lanes) -> Lanes:
    """Compute SQRDMULH: the upper half of twice the product, rounded."""
    twice = 2 * a.astype(np.int64) * b.astype(np.int64) + (1 << 31)
    return np.asarray(np.clip(twice >> 32, -(1 << 31), (1 << 31) - 1), np.int32)


def to_whole(x: NDArray[np.float32], bits: int) -> Lanes:
    """Compute FCVTZS: towards zero, limited, and 0 for NaN."""
    scaled = np.nan_to_num(x.astype(np.float64), nan=0.0) * 2.0**bits
    return np.asarray(np.clip(np.trunc(scaled), -(2**31), 2**31 - 1), np.int64).astype(np.int32)


def execute(lines: list[str], held: dict[int, Lanes]) -> None:
    """Run instructions on registers that are as long as one likes."""
    for line in lines:
        operation, rest = line.split(" ", 1)
        to, *places = (int(each) for each in re.findall(r"\bv(\d+)", rest))
        lane = re.search(r"\.s\[(\d)\]", rest)
        if lane:
            places[-1] = 100 + int(lane[1])
        shift = re.search(r"#(\d+)", rest)
        by = int(shift[1]) if shift else 0
        whole = [held[place] for place in places]
        real = [each.view(np.float32) for each in whole]
        match operation:
            case "fcvtzs":
                held[to] = to_whole(real[0], by)
            case "shl":
                held[to] = (whole[0].astype(np.int64) << by).astype(np.uint32).view(np.int32)
            case "sshr":
                held[to] = whole[0] >> by
            case "sqrdmulh":
                held[to] = high_half(whole[0], whole[1])
            case "add":
                held[to] = (whole[0].astype(np.int64) + whole[1]).astype(np.uint32).view(np.int32)
            case "fadd":
                held[to] = (real[0] + real[1]).view(np.int32)
            case "fsub":
                held[to] = (real[0] - real[1]).view(np.int32)
            case "fmul":
                held[to] = (real[0] * real[1]).view(np.int32)
            case "fdiv":
                held[to] = (real[0] / real[1]).view(np.int32)
            case "fmla":
                exact = real[0].astype(np.float64) * real[1]
                total = (exact + held[to].view(np.float32)).astype(np.float32)
                held[to] = total.view(np.int32)
            case _:
                raise AssertionError(line)


def update(
    gates: list[NDArray[np.float64] | float], cell: NDArray[np.float64] | float, vectors: int = 4
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what the assembly makes of gates (input, output, forget, cell) and the state."""
    shape = np.broadcast_shapes(*(np.shape(each) for each in (*gates, cell)))
    held = constants_of(vectors, int(np.prod(shape)))
    for place, (value, factor) in enumerate(zip(gates, GATE_FACTORS, strict=True)):
        scaled = np.broadcast_to(value, shape).ravel() * factor
        for vector in range(vectors):
            held[place * vectors + vector] = scaled.astype(np.float32).view(np.int32)
    start = np.broadcast_to(cell, shape).ravel().astype(np.float32).view(np.int32)
    cells = range(4 * vectors, 5 * vectors)
    held |= dict.fromkeys(cells, start)
    with np.errstate(over="ignore"):
        execute(gates_of(vectors), held)
    results = [
        [held[place].view(np.float32) for place in places]
        for places in (range(vectors, 2 * vectors), cells)
    ]
    for each in results:
        assert all(np.array_equal(each[0], other) for other in each)
    return results[0][0], results[1][0]


#: Every exponent of float32 that matters, both signs, and evenly what a layer's sums are.
SWEEP = np.concatenate(
    [
        np.linspace(-30, 30, 400_001),
        np.geomspace(1e-12, 1e30, 50_000),
        -np.geomspace(1e-12, 1e30, 50_000),
        [0.0, -0.0],
    ]
)


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 + 0.5 * np.tanh(x / 2)


def argument(factor: float) -> NDArray[np.float64]:
    """Return what the gate's function is applied to, as float32 holds it times the factor."""
    exact: NDArray[np.float64] = (SWEEP * factor).astype(np.float32).astype(np.float64) / factor
    return exact


def test_sigmoid_of_a_gate_is_within_what_is_stated() -> None:
    exact = sigmoid(argument(GATE_FACTORS[0]))
    _, kept = update([SWEEP, SURE, -SURE, SURE], 0.0)
    assert np.abs(kept - exact).max() <= 2.4e-7
    output, _ = update([-SURE, SWEEP, SURE, 0.0], 1e3)
    assert np.abs(output - exact).max() <= 2.4e-7
    _, kept = update([-SURE, SURE, SWEEP, 0.0], 1.0)
    assert np.abs(kept - exact).max() <= 2.4e-7
    assert kept.min() >= 0.0
    assert kept.max() <= 1.0


def test_tanh_of_a_gate_and_of_the_state_is_within_what_is_stated() -> None:
    _, kept = update([SURE, SURE, -SURE, SWEEP], 0.0)
    assert np.abs(kept - np.tanh(argument(GATE_FACTORS[3]))).max() <= 4e-7
    assert np.abs(kept).max() <= 1.0
    states = SWEEP[np.abs(SWEEP) < 1e20]
    output, _ = update([-SURE, SURE, SURE, 0.0], states)
    assert np.abs(output - np.tanh(states.astype(np.float32).astype(np.float64))).max() <= 4e-7
    assert np.abs(output).max() <= 1.0


@pytest.mark.parametrize("vectors", range(1, MOST_VECTORS + 1))
def test_a_step_is_that_of_the_standard(vectors: int) -> None:
    draw = np.random.default_rng(vectors)
    i, o, f, g, c = (draw.normal(scale=3.0, size=20_000) for _ in range(5))
    output, kept = update([i, o, f, g], c, vectors)
    wanted = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    assert np.abs(kept - wanted).max() <= 2e-6
    assert np.abs(output - sigmoid(o) * np.tanh(wanted)).max() <= 2e-6


def test_no_gates_overflow_and_what_is_no_number_counts_as_zero() -> None:
    ends = [np.inf, -np.inf, 1e30, -1e30, 0.0, np.nan]
    table = np.array(list(product(ends, repeat=4))).T
    output, kept = update(list(table), 1e6)
    assert np.isfinite(output).all()
    assert np.isfinite(kept).all()
    assert np.abs(output).max() <= 1.0
    assert np.abs(kept).max() <= 1e6 * (1 + 1e-6) + 1


def test_a_vector_of_units_takes_58_instructions() -> None:
    for vectors in range(1, MOST_VECTORS + 1):
        assert len(gates_of(vectors)) == 58 * vectors


@pytest.mark.parametrize("vectors", range(1, MOST_VECTORS + 1))
def test_in_program_order_loads_leave_the_constants_of_gates_alone(vectors: int) -> None:
    lines = write_cell(vectors, paired=True).split("\\0A")
    loop = lines[lines.index("1:") + 1 : lines.index("b.ne 1b")]
    loaded = {int(each) for line in loop for each in re.findall(r"\bq(\d+)", line)}
    assert loaded
    assert max(loaded) < 29
    multiplied = sum(line.startswith("fmla") for line in loop)
    assert sum("[$1" in line for line in loop) <= 0.51 * multiplied
