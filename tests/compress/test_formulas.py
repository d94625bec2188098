"""Each method on one product and one lookup, beside numpy's answer by the method's formula."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeopt.artifact import Choice, Method, Model, Plan
from edgeopt.compress import apply_plan, make_plan
from edgeopt.compress.blocks import encode_blocks
from edgeopt.model.oracle import Array, run_model
from tests.graphs import describe, normal, save_graph

ROWS, DEPTH, WIDTH = 8, 64, 48
BLOCK = 32
#: Scales that are tried of a block, as shares of the one that holds its largest value.
RATIOS = [0.4 + 0.05 * step for step in range(14)]


def save_product(folder: Path) -> Model:
    text = f"g (float[{ROWS},{DEPTH}] x) => (float[{ROWS},{WIDTH}] y) {{ y = MatMul(x, w) }}"
    weight = normal(0, DEPTH, WIDTH) / 8
    return describe(save_graph(folder / "product.onnx", text, {"w": weight}))


def save_lookup(folder: Path) -> Model:
    text = f"g (int64[1,{ROWS}] x) => (float[1,{ROWS},{DEPTH}] y) {{ y = Gather<axis=0>(w, x) }}"
    return describe(save_graph(folder / "lookup.onnx", text, {"w": normal(1, 200, DEPTH)}))


def by_rows(values: Array) -> Array:
    """int8 with a scale for each row: s = max |w| / 127, c = round(w / s)."""
    scale = (np.abs(values).max(axis=1, keepdims=True) / np.float32(127)).astype(np.float64)
    found: Array = np.clip(np.rint(values / scale), -127, 127) * scale
    return found


def in_blocks(values: Array, bits: int) -> Array:
    """The nearest codes, with the scale of each block that loses least of those that are tried."""
    lowest = -(2 ** (bits - 1))
    found = values.astype(np.float64)
    for row, first in itertools.product(range(len(values)), range(0, values.shape[1], BLOCK)):
        block = values[row, first : first + BLOCK].astype(np.float64)
        largest = block[np.abs(block).argmax()]
        tried = []
        for ratio, side in itertools.product(RATIOS, (lowest, -lowest)):
            scale = float(np.float16(largest * ratio / side))
            codes = np.clip(np.rint(block / scale), lowest, -lowest - 1)
            tried.append((float(np.square(block - codes * scale).sum()), (codes * scale)))
        found[row, first : first + BLOCK] = min(tried, key=lambda each: each[0])[1]
    return found


def as_halves(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float64)


#: What the method's codes and scales stand for, of a matrix as [N, K] and of a table as [V, D].
DECODED: Mapping[Method, Callable[[Array], Array]] = {
    "float16": as_halves,
    "int8-rows": by_rows,
    "int8-weights": by_rows,
    "int4-blocks": lambda values: in_blocks(values, 4),
    "int2-blocks": lambda values: in_blocks(values, 2),
    "int8-blocks": lambda values: in_blocks(values, 8),
}


def compressed(model: Model, method: Method, folder: Path) -> Model:
    block = BLOCK if method.endswith("-blocks") else None
    plan = Plan(name="x", choices=(Choice(weight="w", method=method, block=block),))
    return apply_plan(model, plan, directory=folder / method)


@pytest.mark.parametrize("method", [each for each in DECODED if each != "int8-rows"])
def test_a_product_is_that_with_the_decoded_matrix(tmp_path: Path, method: Method) -> None:
    made = compressed(save_product(tmp_path), method, tmp_path)
    x = normal(5, ROWS, DEPTH)
    weight = normal(0, DEPTH, WIDTH) / np.float32(8)
    found = run_model(made, {"x": x})[0]
    wanted: dict[Method, Array] = {
        name: x.astype(np.float64) @ decode(weight.T).T
        for name, decode in DECODED.items()
        if name != "int8-rows"
    }
    assert np.abs(found - wanted[method]).max() < 2e-6 * np.abs(found).max()
    # Of all formulas only the method's own gives this.
    others = [name for name in wanted if np.abs(found - wanted[name]).max() < 1e-5]
    assert others == [method]


@pytest.mark.parametrize("method", [each for each in DECODED if each != "int8-weights"])
def test_a_lookup_is_that_of_the_decoded_table(tmp_path: Path, method: Method) -> None:
    made = compressed(save_lookup(tmp_path), method, tmp_path)
    ids = np.random.default_rng(2).integers(0, 200, (1, ROWS))
    table = normal(1, 200, DEPTH)
    found = run_model(made, {"x": ids})[0]
    wanted = DECODED[method](table)[ids]
    assert np.abs(found - wanted).max() < 1e-6
    assert np.abs(found - table[ids]).max() > 1e-5


def test_a_dynamic_product_quantizes_what_it_is_given(tmp_path: Path) -> None:
    """DynamicQuantizeLinear of the standard: 0..255 over the range of x, widened to hold zero."""
    made = compressed(save_product(tmp_path), "int8-dynamic", tmp_path)
    weight = by_rows((normal(0, DEPTH, WIDTH) / np.float32(8)).T).T
    for shift in (0.0, 3.0):
        x = normal(6, ROWS, DEPTH) + np.float32(shift)
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        scale = float(np.float32((high - low) / 255))
        zero = np.clip(np.rint(-low / scale), 0, 255)
        codes = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255)
        wanted = (codes - zero) * scale @ weight
        found = run_model(made, {"x": x})[0]
        assert np.abs(found - wanted).max() < 2e-6 * np.abs(wanted).max()
        # Without rounding what it is given the answer would be another one.
        assert np.abs(found - x @ weight).max() > 1e-3 * np.abs(wanted).max()


def test_a_static_product_quantizes_by_the_plans_range(tmp_path: Path) -> None:
    model = save_product(tmp_path)
    samples = {"x": normal(7, 16, ROWS, DEPTH)}
    plan = make_plan(model, "int8-static", samples=samples, directory=tmp_path / "plan")
    made = apply_plan(model, plan, directory=tmp_path / "made")
    (limits,) = plan.ranges
    low, high = min(limits.low, 0.0), max(limits.high, 0.0)
    scale = float(np.float32((high - low) / 255))
    zero = np.rint(-128 - low / scale)
    weight = by_rows((normal(0, DEPTH, WIDTH) / np.float32(8)).T).T
    x = normal(8, ROWS, DEPTH) * np.float32(1.5)
    codes = np.clip(np.rint(x / np.float32(scale)) + zero, -128, 127)
    wanted = (codes - zero) * scale @ weight
    found = run_model(made, {"x": x})[0]
    assert np.abs(found - wanted).max() < 2e-6 * np.abs(wanted).max()
    assert np.abs(found - x @ weight).max() > 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("seed", range(3))
def test_other_scales_of_blocks_lose_hardly_less(bits: int, seed: int) -> None:
    rows = normal(seed, 24, BLOCK).astype(np.float64)
    codes, scales = encode_blocks(rows.astype(np.float32), block=BLOCK, bits=bits)
    lost = np.square(rows - codes * scales).sum()
    lowest = -(2 ** (bits - 1))
    least = 0.0
    for row in rows:
        every = np.linspace(0.2, 1.2, 1000)[:, None] * np.abs(row).max() / lowest
        every = np.concatenate([every, -every])
        nearest = np.clip(np.rint(row / every), lowest, -lowest - 1) * every
        least += float(np.square(row - nearest).sum(axis=1).min())
    assert least <= lost < {8: 1.35, 4: 1.1, 2: 1.05}[bits] * least
    # The scale of each block that clips nothing loses more.
    plain = np.abs(rows).max(axis=1, keepdims=True) / (-lowest - 1)
    kept = np.clip(np.rint(rows / plain), lowest, -lowest - 1) * plain
    assert lost < 0.97 * np.square(rows - kept).sum()
