"""Functions of codes as tables, as 64-bit ARM looks them up, against onnxruntime's floats."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.compile.cpu import describe_cpu
from edgeopt.compile.import_onnx import import_model
from edgeopt.compile.lower import lower_module
from edgeopt.model.oracle import run_model
from tests.compile.kit import Graph, make_target
from tests.host.test_arm import describe
from tests.host.test_compile import run_program

pytestmark = pytest.mark.host

KINDS = {"int8": (np.int8(-3), TensorProto.INT8), "uint8": (np.uint8(120), TensorProto.UINT8)}


def activate(graph: Graph, x: str, function: str) -> str:
    """Compute a function of one tensor as exporters write it."""
    if function == "gelu":
        half, one = (graph.constant(np.float32(value)) for value in (0.5, 1.0))
        inner = graph.add("Erf", graph.add("Div", x, graph.constant(np.float32(2.0**0.5))))
        return str(graph.add("Mul", graph.add("Mul", x, graph.add("Add", inner, one)), half))
    if function == "silu":
        return str(graph.add("Mul", x, graph.add("Sigmoid", x)))
    if function == "decay":
        return str(graph.add("Exp", graph.add("Neg", graph.add("Relu", x))))
    assert function == "other codes"
    return x


def save(path: Path, function: str, kind: str, shape: tuple[int, ...]) -> Path:
    """Encode, apply a function between two quantizers, and decode: one input, one output."""
    graph = Graph()
    zero, _ = KINDS[kind]
    before = graph.constant(np.float32(0.021)), graph.constant(zero)
    after = graph.constant(np.float32(0.013)), graph.constant(np.asarray(zero + 7, zero.dtype))
    codes = graph.add("QuantizeLinear", graph.input("x", shape), *before)
    value = activate(graph, graph.add("DequantizeLinear", codes, *before), function)
    codes = graph.add("QuantizeLinear", value, *after)
    graph.output(graph.add("DequantizeLinear", codes, *after), shape)
    return graph.save(path)


#: Whole vectors of sixteen, ragged ones, one, and more than one core computes, both ways.
SHAPES = ((4, 16), (2, 5, 7), (16,), (3, 5477), (8, 2064))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", ["gelu", "silu", "decay", "other codes"])
def test_what_lies_between_two_quantizers_is_looked_up(
    function: str, kind: str, tmp_path: Path
) -> None:
    for place, shape in enumerate(SHAPES):
        folder = tmp_path / str(place)
        folder.mkdir()
        path = save(folder / "m.onnx", function, kind, shape)
        target = make_target("aarch64", static=True)
        module = lower_module(import_model(path), describe_cpu(target)).module
        assert any("code_table" in variable.name_hint for variable in module.functions)
        bundle = compile_model(
            describe(path), target, directory=folder / "bundle", cache=cache_folder()
        )
        assert bundle.unscheduled == ()
        # All codes, and beyond what they can say.
        x = np.linspace(-6, 6, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        found, _ = run_program(bundle, {"x": x}, folder)
        apart = np.rint((found - run_model(path, {"x": x}, optimize=False)[0]) / 0.013)
        assert np.abs(apart).max() <= 1
        # A code of 256 may lie next to a tie.
        assert np.count_nonzero(apart) <= 0.02 * apart.size


def test_less_than_a_vector_and_functions_of_two_tensors_are_computed(tmp_path: Path) -> None:
    few = save(tmp_path / "few.onnx", "gelu", "int8", (3, 5))
    graph = Graph()
    limits = graph.constant(np.float32(0.02)), graph.constant(np.int8(1))
    codes = [graph.add("QuantizeLinear", graph.input(name, (64,)), *limits) for name in ("a", "b")]
    decoded = [graph.add("DequantizeLinear", each, *limits) for each in codes]
    product = graph.add("QuantizeLinear", graph.add("Mul", *decoded), *limits)
    graph.output(product, (64,), TensorProto.INT8)
    cpu = describe_cpu(make_target("aarch64"))
    for path in (few, graph.save(tmp_path / "two.onnx")):
        names = [v.name_hint for v in lower_module(import_model(path), cpu).module.functions]
        assert not any("code_table" in name for name in names), names
