"""Small ONNX graphs for tests, written as text, with seeded weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgeopt.artifact import Model
from edgeopt.model.describe import facts
from edgeopt.model.load import read_model

HEADER = '<ir_version: 10, opset_import: ["" : 18]>'


def save_graph(path: Path, text: str, stored: Mapping[str, npt.NDArray[Any]]) -> Path:
    """Write a graph with these initializers."""
    model = onnx.parser.parse_model(HEADER + text)
    for name, values in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return path


def describe(path: Path) -> Model:
    """Return the facts of a trusted file without another process."""
    return read_model(path, facts(onnx.load(path)), provenance=(path.name,))


def normal(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def text_model(folder: Path, *, seed: int = 0, vocabulary: int = 500) -> Model:
    """Embed 8 tokens, mix them with a MatMul shared by nothing, classify the mean with a Gemm."""
    text = """
    text (int64[1,8] input_ids, int64[1,8] attention_mask) => (float[1,4] scores) {
        rows = Gather<axis=0>(table, input_ids)
        hidden = MatMul(rows, mix)
        shifted = Add(hidden, bias)
        active = Relu(shifted)
        number = Cast<to=1>(attention_mask)
        column = Unsqueeze(number, two)
        kept = Mul(active, column)
        mean = ReduceSum<keepdims=0>(kept, one)
        scores = Gemm<transB=1>(mean, head, head_bias)
    }"""
    stored = {
        "table": normal(seed, vocabulary, 32),
        "mix": normal(seed + 1, 32, 64),
        "bias": normal(seed + 2, 64),
        "two": np.array([2]),
        "one": np.array([1]),
        "head": normal(seed + 3, 16, 64)[:4].copy(),
        "head_bias": normal(seed + 4, 4),
    }
    return describe(save_graph(folder / "text.onnx", text, stored))


def image_model(folder: Path, *, seed: int = 0) -> Model:
    """Two convolutions, the second one depthwise, and a Gemm with its weight transposed."""
    text = """
    image (float[1,3,12,12] pixels) => (float[1,10] scores) {
        first = Conv<pads=[1,1,1,1]>(pixels, kernel, kernel_bias)
        active = Relu(first)
        second = Conv<pads=[1,1,1,1], group=128>(active, depthwise)
        mean = GlobalAveragePool(second)
        flat = Flatten(mean)
        scores = Gemm<transB=1>(flat, head, head_bias)
    }"""
    stored: dict[str, npt.NDArray[Any]] = {
        "kernel": normal(seed, 128, 3, 3, 3) / 5,
        "kernel_bias": normal(seed + 1, 128),
        "depthwise": normal(seed + 2, 128, 1, 3, 3) / 3,
        "head": normal(seed + 3, 10, 128),
        "head_bias": normal(seed + 4, 10),
    }
    return describe(save_graph(folder / "image.onnx", text, stored))


def deep_model(folder: Path, *, depth: int = 4, width: int = 64) -> Model:
    """Multiply a row [1, width] by one matrix after the other, bent in between; four scores."""
    steps = "\n".join(
        f"            p{at} = MatMul({'x' if at == 0 else f'b{at - 1}'}, w{at})\n"
        f"            b{at} = Tanh(p{at})"
        for at in range(depth)
    )
    text = f"""
    deep (float[1,{width}] x) => (float[1,4] scores) {{
{steps}
            scores = MatMul(b{depth - 1}, head)
    }}"""
    stored = {f"w{at}": normal(at, width, width) / np.float32(8) for at in range(depth)}
    stored["head"] = normal(depth, width, 4) / np.float32(8)
    return describe(save_graph(folder / "deep.onnx", text, stored))
