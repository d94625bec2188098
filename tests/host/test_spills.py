"""No inner loop of a product, a convolution or a depthwise one keeps values on the stack."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from edgeopt.compile.cpu import Cpu, describe_cpu
from edgeopt.target import load_target
from tests.bench.loops import Loop, compile_assembly, find_loops
from tests.compile.kit import Graph, store_product

pytestmark = pytest.mark.host

#: Cortex-A53, -A72, -A76 and -A720.
BOARDS = ("rpi3", "rpi4", "rpi5", "orion-o6")
#: Rows, depth and columns.
PRODUCTS = (
    (128, 384, 384),
    (128, 384, 1536),
    (32, 384, 1536),
    (197, 384, 192),
    (7, 384, 80),
    (1, 384, 384),
)
#: Inputs, size, outputs, kernel, stride.
CONVOLUTIONS = (
    (64, 14, 64, 3, 1),
    (64, 28, 128, 3, 2),
    (96, 14, 96, 1, 1),
    (24, 56, 144, 1, 1),
    (160, 7, 320, 1, 1),
    (3, 112, 32, 3, 2),
)
#: Channels, size, stride, kernel.
DEPTHWISE = (
    (96, 28, 1, 3),
    (144, 56, 1, 3),
    (144, 56, 2, 3),
    (384, 14, 1, 3),
    (576, 14, 2, 3),
    (960, 7, 1, 3),
    (96, 10, 1, 3),
    (64, 20, 2, 3),
    (240, 20, 1, 5),
    (96, 10, 1, 5),
    (120, 28, 2, 5),
    (64, 14, 1, 7),
)


def save_products(path: Path, method: str) -> Path:
    graph = Graph()
    for i, (rows, depth, columns) in enumerate(PRODUCTS):
        weight = graph.random.standard_normal((depth, columns)).astype(np.float32)
        x = graph.input(f"x{i}", (rows, depth))
        product = store_product(graph, x, weight, method)
        graph.output(graph.add("Relu", product), (rows, columns))
    return graph.save(path)


def save_convolutions(path: Path) -> Path:
    graph = Graph()
    for i, (inputs, size, outputs, kernel, stride) in enumerate(CONVOLUTIONS):
        x = graph.input(f"x{i}", (1, inputs, size, size))
        weights = graph.weight(outputs, inputs, kernel, kernel), graph.weight(outputs)
        x = graph.add("Conv", x, *weights, pads=[kernel // 2] * 4, strides=[stride] * 2)
        graph.output(graph.add("Relu", x), (1, outputs, size // stride, size // stride))
    return graph.save(path)


def save_depthwise(path: Path) -> Path:
    graph = Graph()
    for i, (channels, size, stride, kernel) in enumerate(DEPTHWISE):
        x = graph.input(f"x{i}", (1, channels, size, size))
        weights = graph.weight(channels, 1, kernel, kernel), graph.weight(channels)
        pads = [kernel // 2] * 4
        x = graph.add("Conv", x, *weights, pads=pads, strides=[stride] * 2, group=channels)
        graph.output(graph.add("Relu", x), (1, channels, size // stride, size // stride))
    return graph.save(path)


def save_code_convolutions(path: Path, *, depthwise: bool) -> Path:
    graph = Graph()
    each = [(c, size, c, kernel, stride) for c, size, stride, kernel in DEPTHWISE]
    for i, (inputs, size, outputs, kernel, stride) in enumerate(
        each if depthwise else CONVOLUTIONS
    ):
        x = graph.input(f"x{i}", (1, inputs, size, size), TensorProto.INT8)
        limits = graph.constant(np.float32(0.03)), graph.constant(np.int8(-3))
        x = graph.add("DequantizeLinear", x, *limits)
        groups = inputs if depthwise else 1
        shape = (outputs, inputs // groups, kernel, kernel)
        codes = graph.random.integers(-127, 128, shape).astype(np.int8)
        weight = graph.constant(codes), graph.constant(np.full(outputs, 0.002, np.float32))
        filters = graph.add("DequantizeLinear", *weight, axis=0)
        x = graph.add(
            "Conv", x, filters, pads=[kernel // 2] * 4, strides=[stride] * 2, group=groups
        )
        x = graph.add("QuantizeLinear", graph.add("Relu", x), *limits)
        graph.output(x, (1, outputs, size // stride, size // stride), TensorProto.INT8)
    return graph.save(path)


MODELS: dict[str, Callable[[Path], Path]] = {
    "float32 products": lambda path: save_products(path, "float32"),
    "int8 products": lambda path: save_products(path, "int8-static"),
    "convolutions": save_convolutions,
    "depthwise convolutions": save_depthwise,
    "int8 convolutions": lambda path: save_code_convolutions(path, depthwise=False),
    "int8 depthwise convolutions": lambda path: save_code_convolutions(path, depthwise=True),
}


def loops_of(path: Path, cpu: Cpu) -> list[Loop]:
    """Compile a graph; list the loops of its products and convolutions.

    The transforms around minimal filtering hold 36 values at once and are no sums.
    """
    loops = find_loops(compile_assembly(path, cpu))
    kinds = ("gemm", "conv", "pointwise", "depthwise")
    products = [loop for loop in loops if any(kind in loop.function for kind in kinds)]
    return products + [loop for loop in loops if "winograd" in loop.function and loop.sums]


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("name", MODELS)
def test_no_inner_loop_spills(name: str, board: str, tmp_path: Path) -> None:
    loops = loops_of(MODELS[name](tmp_path / "m.onnx"), describe_cpu(load_target(board)))
    assert len({loop.function for loop in loops}) >= 6
    spilling = [
        f"{loop.function}: {loop.stack} references to the stack, {loop.multiplications} products"
        for loop in loops
        if loop.stack
    ]
    assert not spilling, "\n".join(spilling)
