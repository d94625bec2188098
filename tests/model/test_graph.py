from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgeopt.model.graph import Weight, infer_types, lookup_limit, read_arithmetic, weights
from tests.graphs import image_model, normal, save_graph, text_model


def test_weights_are_found_with_their_role_and_output_channels(tmp_path: Path) -> None:
    text = onnx.load(text_model(tmp_path).path).graph
    assert weights(text) == (
        Weight("table", "table", (500, 32), 0),
        Weight("mix", "matmul", (32, 64), 1),
        Weight("head", "gemm", (4, 64), 0),
    )
    image = onnx.load(image_model(tmp_path).path).graph
    assert [(each.name, each.role) for each in weights(image)] == [
        ("kernel", "conv"),
        ("depthwise", "conv"),
        ("head", "gemm"),
    ]


def test_a_weight_that_is_used_in_two_ways_is_left_alone(tmp_path: Path) -> None:
    text = """
    tied (int64[1,4] ids) => (float[1,4,4] y, float[4,4] z) {
        rows = Gather<axis=0>(table, ids)
        y = MatMul(rows, table)
        z = Identity(other)
    }"""
    stored = {"table": normal(0, 4, 4), "other": normal(1, 4, 4)}
    assert weights(onnx.load(save_graph(tmp_path / "m.onnx", text, stored)).graph) == ()


@pytest.mark.parametrize("vocabulary", [7, 500])
def test_token_ids_are_known_by_the_table_they_index(tmp_path: Path, vocabulary: int) -> None:
    graph = onnx.load(text_model(tmp_path, vocabulary=vocabulary).path).graph
    assert lookup_limit(graph, "input_ids") == vocabulary
    assert lookup_limit(graph, "attention_mask") is None


def test_the_smallest_of_several_tables_limits_an_input(tmp_path: Path) -> None:
    text = """
    two (int32[4] ids) => (float[4,1,2] y) {
        wide = Cast<to=7>(ids)
        column = Unsqueeze(wide, axes)
        a = Gather<axis=0>(large, column)
        b = Gather<axis=0>(small, column)
        y = Add(a, b)
    }"""
    stored = {"large": normal(0, 9, 2), "small": normal(1, 3, 2), "axes": np.array([1])}
    graph = onnx.load(save_graph(tmp_path / "m.onnx", text, stored)).graph
    assert lookup_limit(graph, "ids") == 3


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("w = Cast<to=1>(half)  y = Mul(x, w)", "float32"),
        ("w = DequantizeLinear(codes, one)  y = Mul(x, w)", "float32"),
        ("h = Cast<to=10>(x)  s = Mul(h, half)  y = Cast<to=1>(s)", "float16"),
        ("q, s, z = DynamicQuantizeLinear(x)  y = DequantizeLinear(q, s, z)", "integer"),
        ("h = Cast<to=10>(x)  q = QuantizeLinear(x, one)  y = DequantizeLinear(q, one)", "integer"),
    ],
)
def test_the_arithmetic_is_that_of_the_activations(
    tmp_path: Path, nodes: str, expected: str
) -> None:
    stored: dict[str, np.ndarray] = {
        "half": np.ones(4, np.float16),
        "codes": np.ones(4, np.int8),
        "one": np.ones((), np.float32),
    }
    path = save_graph(tmp_path / "m.onnx", f"g (float[4] x) => (float[4] y) {{ {nodes} }}", stored)
    assert read_arithmetic(path) == expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("w = Cast<to=1>(half)  y = MatMul(x, w)", "float16"),
        ("w = Cast<to=1>(half)  y = Mul(x, w)", "float32"),
        ("w = Cast<to=1>(half)  y = MatMul(x, square)", "float32"),
    ],
)
def test_stored_halves_count_where_the_device_multiplies_them(
    tmp_path: Path, nodes: str, expected: str
) -> None:
    stored: dict[str, np.ndarray] = {
        "half": np.ones((4, 4), np.float16),
        "square": np.ones((4, 4), np.float32),
    }
    path = save_graph(
        tmp_path / "m.onnx", f"g (float[4,4] x) => (float[4,4] y) {{ {nodes} }}", stored
    )
    assert read_arithmetic(path, multiplies_halves=True) == expected
    assert read_arithmetic(path) == "float32"


def test_types_are_inferred_without_handing_over_what_decides_on_no_shape(tmp_path: Path) -> None:
    text = """
    g (float[2,64] x) => (float[n,32] y) {
        h = MatMul(x, w)
        y = Reshape(h, shape)
    }"""
    stored: dict[str, NDArray[Any]] = {
        "w": normal(0, 64, 64),
        "shape": np.array([4, 32], np.int64),
    }
    model = onnx.load(save_graph(tmp_path / "m.onnx", text, stored))
    before = model.SerializeToString(deterministic=True)
    found = infer_types(model)
    assert model.SerializeToString(deterministic=True) == before
    expected = onnx.shape_inference.infer_shapes(model, data_prop=True)
    assert found.SerializeToString(deterministic=True) == expected.SerializeToString(
        deterministic=True
    )
    bare = infer_types(model, values=False)
    assert list(bare.graph.value_info) == list(expected.graph.value_info)
    assert {each.name: len(each.raw_data) for each in bare.graph.initializer} == {
        "w": 0,
        "shape": 16,
    }
