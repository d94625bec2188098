"""Quantized graphs against onnxruntime's own arithmetic, step by step, on this machine."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from edgeopt.model.oracle import run_model
from tests.compile.kit import Graph, lower_natively, run_natively

pytestmark = pytest.mark.host

SEEDS = (0, 1, 2)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def encode(
    graph: Graph, x: str, scale: float, zero: np.int8 | np.uint8
) -> tuple[str, tuple[str, str]]:
    """Add QuantizeLinear; return its output and its parameters."""
    limits = (graph.constant(np.float32(scale)), graph.constant(zero))
    return str(graph.add("QuantizeLinear", x, *limits)), limits


def product(graph: Graph, x: str, depth: int, columns: int) -> str:
    """Multiply by an int8 matrix with a scale per column."""
    codes = graph.random.integers(-127, 128, (depth, columns)).astype(np.int8)
    scales = graph.random.uniform(1e-3, 3e-3, columns).astype(np.float32)
    zeros = graph.constant(np.zeros(columns, np.int8))
    stored = (graph.constant(codes), graph.constant(scales), zeros)
    weight = graph.add("DequantizeLinear", *stored, axis=1)
    return str(graph.add("MatMul", x, weight))


def compare_codes(path: Path, feeds: dict[str, np.ndarray]) -> int:
    """Return how many codes differ by one; more than one is a failure."""
    found, wanted = run_natively(path, feeds)[0], run_model(path, feeds)[0]
    distance = np.abs(found.astype(np.int32) - wanted.astype(np.int32))
    assert distance.max() <= 1
    return int(np.count_nonzero(distance))


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 64, 48), (7, 37, 19), (33, 130, 67)])
def test_a_chain_of_quantized_products_stores_onnxruntimes_codes(
    kind: type, rows: int, depth: int, columns: int, tmp_path: Path
) -> None:
    graph = Graph(rows)
    zero = np.int8(-3) if kind is np.int8 else np.uint8(120)
    x = graph.input("x", (rows, depth))
    codes, limits = encode(graph, x, 0.03, zero)
    first = product(graph, graph.add("DequantizeLinear", codes, *limits), depth, columns)
    first = graph.add("Relu", graph.add("Add", first, graph.weight(columns)))
    codes, limits = encode(graph, first, 0.02, zero)
    second = product(graph, graph.add("DequantizeLinear", codes, *limits), columns, depth)
    codes, _ = encode(graph, second, 0.02, zero)
    element = TensorProto.INT8 if kind is np.int8 else TensorProto.UINT8
    graph.output(codes, (rows, depth), element)
    path = graph.save(tmp_path / "m.onnx")
    # Sums of floats in another order move a value across a tie now and then.
    different = sum(compare_codes(path, {"x": draw(seed, rows, depth)}) for seed in SEEDS)
    assert different <= 0.01 * rows * depth * len(SEEDS)


def test_codes_pass_through_reshapes_and_transposes_into_integer_products(tmp_path: Path) -> None:
    graph = Graph()
    zero = np.int8(5)
    x = graph.input("x", (1, 4, 7, 8))
    codes, limits = encode(graph, x, 0.03, zero)
    turned = graph.add("DequantizeLinear", codes, *limits)
    turned = graph.add("Transpose", turned, perm=[0, 2, 1, 3])
    turned = graph.add("DequantizeLinear", graph.add("QuantizeLinear", turned, *limits), *limits)
    flat = graph.add("Reshape", turned, graph.constant(np.array([1, 7, 32])))
    flat = graph.add("DequantizeLinear", graph.add("QuantizeLinear", flat, *limits), *limits)
    codes, _ = encode(graph, product(graph, flat, 32, 19), 0.02, zero)
    graph.output(codes, (1, 7, 19), TensorProto.INT8)
    path = graph.save(tmp_path / "m.onnx")
    assert sum(compare_codes(path, {"x": draw(seed, 1, 4, 7, 8)}) for seed in SEEDS) <= 3
    names = [variable.name_hint for variable in lower_natively(path)[0].functions]
    assert sum("integer_gemm" in name for name in names) == 1
    assert not any("dequantize" in name for name in names), names
