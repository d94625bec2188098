"""Quantized convolutions and what stands between them, against onnxruntime on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto
from tvm import relax

from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.compile.cpu import Cpu, describe_cpu
from edgeopt.compile.import_onnx import import_model
from edgeopt.compile.lower import lower_module
from edgeopt.compile.views import constant_of
from edgeopt.model.oracle import run_model
from edgeopt.target import Cluster
from tests.compile.kit import Array, Graph, make_target, run_lowered
from tests.host.test_arm import describe
from tests.host.test_compile import run_program

pytestmark = pytest.mark.host

SEEDS = (0, 1, 2)
#: Instruction sets that this machine may have: AVX2 everywhere, VNNI where the kernel lists it.
FEATURES = {
    "avx2": (),
    "vnni": ("avx512f", "avx512_vnni"),
    "amx": ("avx512f", "avx512_vnni", "amx_int8"),
}
#: AVX2's products widen either type in the same way.
EACH = [("int8", "vnni"), ("uint8", "vnni"), ("uint8", "avx2"), ("int8", "amx"), ("uint8", "amx")]
KINDS = {"int8": (np.int8(-3), TensorProto.INT8), "uint8": (np.uint8(120), TensorProto.UINT8)}


def cpu_of(features: str) -> Cpu:
    missing = set(FEATURES[features]) - set(Path("/proc/cpuinfo").read_text().split())
    if missing:
        pytest.skip(f"this machine has no {', '.join(sorted(missing))}")
    return describe_cpu(make_target("x86_64", features=FEATURES[features]))


@dataclass(frozen=True)
class Case:
    """A convolution: its image, filters [O, I, ...], and ONNX attributes."""

    image: tuple[int, ...]
    filters: tuple[int, ...]
    attributes: tuple[tuple[str, Any], ...] = ()


CASES = {
    "pointwise": Case((1, 16, 9, 7), (24, 16, 1, 1)),
    "pointwise of odd channels": Case((1, 13, 5, 6), (19, 13, 1, 1)),
    "pointwise of a batch": Case((3, 8, 4, 4), (16, 8, 1, 1)),
    "pointwise with strides": Case((1, 24, 9, 11), (40, 24, 1, 1), (("strides", [2, 2]),)),
    "image": Case((1, 3, 17, 19), (20, 3, 3, 3), (("strides", [2, 2]), ("pads", [1, 1, 1, 1]))),
    "wide window": Case((1, 3, 18, 15), (16, 3, 7, 7), (("pads", [3, 3, 3, 3]),)),
    "rows of two": Case((1, 2, 11, 40), (16, 2, 8, 5), (("pads", [2, 1, 0, 3]),)),
    "narrow": Case((2, 64, 7, 6), (48, 64, 3, 3), (("pads", [1, 1, 1, 1]),)),
    "square": Case((1, 16, 14, 14), (32, 16, 3, 3), (("pads", [1, 1, 1, 1]),)),
    "lines": Case((2, 64, 20, 28), (40, 64, 3, 3), (("pads", [1, 1, 1, 1]),)),
    "lines with strides": Case(
        (1, 40, 25, 19), (70, 40, 3, 3), (("pads", [2, 1, 1, 1]), ("strides", [2, 1]))
    ),
    "lines apart": Case(
        (1, 70, 15, 28), (16, 70, 2, 1), (("dilations", [3, 1]), ("strides", [1, 2]))
    ),
    "odd channels": Case((2, 11, 8, 9), (21, 11, 3, 2), (("pads", [0, 2, 1, 0]),)),
    "without padding": Case((1, 12, 8, 9), (33, 12, 3, 3)),
    "dilated": Case((1, 10, 13, 12), (16, 10, 3, 3), (("dilations", [2, 3]),)),
    "dilated rows": Case((1, 8, 13, 12), (16, 8, 3, 3), (("dilations", [2, 1]),)),
    "groups": Case((1, 24, 9, 9), (96, 6, 3, 3), (("group", 4), ("pads", [1, 1, 1, 1]))),
    "groups of few": Case((1, 6, 9, 9), (9, 2, 3, 3), (("group", 3), ("pads", [1, 0, 0, 1]))),
    "depthwise": Case((1, 32, 11, 13), (32, 1, 3, 3), (("group", 32), ("pads", [1, 1, 1, 1]))),
    "depthwise of odd channels": Case((1, 19, 8, 9), (19, 1, 5, 3), (("group", 19),)),
    "depthwise with strides": Case(
        (1, 48, 14, 14), (48, 1, 3, 3), (("group", 48), ("strides", [2, 2]), ("pads", [0, 0, 1, 1]))
    ),
    "depthwise of five rows": Case(
        (2, 32, 13, 9),
        (32, 1, 5, 3),
        (("group", 32), ("dilations", [2, 3]), ("pads", [3, 1, 5, 4]), ("strides", [1, 2])),
    ),
    "depthwise of two rows": Case((1, 16, 7, 30), (16, 1, 2, 2), (("group", 16),)),
    "depthwise twice": Case((1, 16, 9, 8), (32, 1, 3, 3), (("group", 16), ("pads", [1, 1, 1, 1]))),
    "sequence": Case((1, 20, 31), (24, 20, 3), (("pads", [1, 1]),)),
    "sequence with strides": Case((2, 7, 30), (9, 7, 5), (("strides", [3]), ("dilations", [2]))),
    "sequence depthwise": Case((1, 16, 30), (16, 1, 4), (("group", 16), ("pads", [3, 0]))),
}


def decode(graph: Graph, codes: str, scale: float, zero: np.generic) -> str:
    limits = (graph.constant(np.float32(scale)), graph.constant(zero))
    return str(graph.add("DequantizeLinear", codes, *limits))


def encode(graph: Graph, x: str, scale: float, zero: np.generic) -> str:
    limits = (graph.constant(np.float32(scale)), graph.constant(zero))
    return str(graph.add("QuantizeLinear", x, *limits))


def recode(graph: Graph, x: str, scale: float, zero: np.generic) -> str:
    return decode(graph, encode(graph, x, scale, zero), scale, zero)


def convolve(graph: Graph, x: str, case: Case, scale: float, *, bias: bool = True) -> str:
    """Convolve by int8 filters with a scale per output, and an int32 bias."""
    outputs = case.filters[0]
    codes = graph.random.integers(-127, 128, case.filters).astype(np.int8)
    scales = graph.random.uniform(1e-3, 3e-3, outputs).astype(np.float32)
    stored = (graph.constant(codes), graph.constant(scales))
    inputs = [x, graph.add("DequantizeLinear", *stored, axis=0)]
    if bias:
        steps = graph.random.integers(-9000, 9000, outputs).astype(np.int32)
        factor = graph.constant(scales * np.float32(scale))
        inputs.append(graph.add("DequantizeLinear", graph.constant(steps), factor, axis=0))
    return str(graph.add("Conv", *inputs, **dict(case.attributes)))


def finish(graph: Graph, name: str, path: Path, element: int) -> Path:
    """Write a graph with one output whose shape onnx infers."""
    graph.output(name, (), element)
    del graph.outputs[0].type.tensor_type.shape.dim[:]
    graph.outputs[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(
        onnx.helper.make_model(
            onnx.helper.make_graph(graph.nodes, "g", graph.inputs, graph.outputs, graph.constants),
            opset_imports=[onnx.helper.make_opsetid("", 18)],
            ir_version=9,
        )
    )
    onnx.save(inferred, path)
    return path


def draw(seed: int, shape: tuple[int, ...]) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


def compare_codes(path: Path, shape: tuple[int, ...], cpu: Cpu) -> tuple[int, int, list[str]]:
    """Return how many codes of how many differ, by one and no more, and the functions' names."""
    different = total = 0
    for seed in SEEDS:
        (found,), names = run_lowered(path, draw(seed, shape), cpu)
        wanted = run_model(path, draw(seed, shape))[0]
        distance = np.abs(found.astype(np.int32) - wanted.astype(np.int32))
        assert distance.max() <= 1
        different, total = different + int(np.count_nonzero(distance)), total + distance.size
    return different, total, names


@pytest.mark.parametrize(("kind", "features"), EACH)
@pytest.mark.parametrize("name", CASES)
def test_sums_of_codes_are_exact(name: str, kind: str, features: str, tmp_path: Path) -> None:
    case, (zero, element) = CASES[name], KINDS[kind]
    cpu = cpu_of(features)
    graph = Graph()
    x = graph.input("x", case.image, element)
    result = convolve(graph, decode(graph, x, 0.03, zero), case, 0.03, bias=False)
    path = finish(graph, result, tmp_path / "m.onnx", TensorProto.FLOAT)
    filters, scales = (onnx.numpy_helper.to_array(each) for each in graph.constants[:2])
    if filters.ndim == 0:  # the image's parameters come first
        filters, scales = (onnx.numpy_helper.to_array(each) for each in graph.constants[2:4])
    whole = Graph()
    y = whole.input("x", case.image)
    kernel = whole.constant(filters.astype(np.float32))
    sums = whole.add("Conv", y, kernel, **dict(case.attributes))
    reference = finish(whole, sums, tmp_path / "sums.onnx", TensorProto.FLOAT)
    info = np.iinfo(kind)
    codes = np.random.default_rng(1).integers(info.min, info.max + 1, case.image).astype(kind)
    (found,), names = run_lowered(path, {"x": codes}, cpu)
    # Below 2^24 the sums of float32 are exact too.
    exact = run_model(reference, {"x": codes.astype(np.float32) - np.float32(zero)})[0]
    factor = (np.float32(0.03) * scales).reshape(-1, *[1] * (exact.ndim - 2))
    np.testing.assert_array_equal(found, exact * factor)
    assert any("integer" in each for each in names), names


@pytest.mark.parametrize(("kind", "features"), EACH)
@pytest.mark.parametrize("name", ["pointwise", "image", "groups", "depthwise", "sequence"])
def test_a_layer_stores_onnxruntimes_codes(
    name: str, kind: str, features: str, tmp_path: Path
) -> None:
    case, (zero, element) = CASES[name], KINDS[kind]
    graph = Graph()
    x = recode(graph, graph.input("x", case.image), 0.03, zero)
    layer = graph.add("Relu", convolve(graph, x, case, 0.03))
    path = finish(graph, encode(graph, layer, 0.05, zero), tmp_path / "m.onnx", element)
    different, total, names = compare_codes(path, case.image, cpu_of(features))
    # The quantizer of the image multiplies by its inverse scale: a tie may fall otherwise.
    assert different <= 0.002 * total
    assert not any("dequantize" in each for each in names), names


def save_chain(path: Path, kind: str) -> tuple[Path, tuple[int, ...]]:
    """Write a network with every operator that is computed on codes."""
    zero, element = KINDS[kind]
    graph = Graph()
    shape = (1, 3, 21, 18)
    x = recode(graph, graph.input("x", shape), 0.03, zero)
    stem = Case(shape, (16, 3, 3, 3), (("strides", [2, 2]), ("pads", [1, 1, 1, 1])))
    x = recode(graph, graph.add("Relu", convolve(graph, x, stem, 0.03)), 0.02, zero)
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = recode(graph, x, 0.02, zero)
    own = Case((), (16, 16, 3, 3), (("pads", [1, 1, 1, 1]),))
    other = recode(graph, convolve(graph, x, own, 0.02), 0.05, zero)
    x = recode(graph, graph.add("Relu", graph.add("Add", other, x)), 0.04, zero)
    each = Case((), (16, 1, 3, 3), (("group", 16), ("pads", [1, 1, 1, 1])))
    other = recode(graph, convolve(graph, x, each, 0.04), 0.03, zero)
    x = recode(graph, graph.add("Concat", x, other, axis=1), 0.045, zero)
    scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
    x = graph.add("Resize", x, "", scales, mode="nearest")
    x = recode(graph, x, 0.045, zero)
    first, second = graph.add("Split", x, outputs=2, axis=1, num_outputs=2)
    x = recode(graph, graph.add("Add", first, second), 0.06, zero)
    x = graph.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 0, 0, 1])
    x = recode(graph, x, 0.05, zero)
    x = recode(graph, graph.add("GlobalAveragePool", x), 0.03, zero)
    last = convolve(graph, x, Case((), (40, 16, 1, 1)), 0.03)
    return finish(graph, encode(graph, last, 0.02, zero), path, element), shape


@pytest.mark.parametrize(("kind", "features"), EACH)
def test_a_network_stays_in_codes(kind: str, features: str, tmp_path: Path) -> None:
    path, shape = save_chain(tmp_path / "m.onnx", kind)
    cpu = cpu_of(features)
    # A mean next to a tie moves a code by one, which moves many of the last layer's by one.
    compare_codes(path, shape, cpu)
    wide = wide_results(lower_module(import_model(path), cpu).module)
    assert wide == []


def wide_results(module: tvm.IRModule) -> list[str]:
    """List the kernels between the first and the last that store float32."""
    found = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            kinds = getattr(binding.var.ty, "fields", [binding.var.ty])
            if any(str(each.dtype) == "float32" for each in kinds):
                found.append(str(binding.value.args[0]))
    return found


def test_filters_are_stored_as_codes_only(tmp_path: Path) -> None:
    path, _ = save_chain(tmp_path / "m.onnx", "int8")
    cpu = describe_cpu(make_target("x86_64"))
    module = lower_module(import_model(path), cpu).module
    stored: list[Array] = []

    def collect(expr: relax.Expr) -> None:
        value = constant_of(expr)
        if value is not None:
            stored.append(value)

    relax.analysis.post_order_visit(module["main"], collect)
    filters = 16 * 27 + 16 * 16 * 9 + 16 * 9 + 40 * 16
    # Depthwise ones, which are few, in the type that they are multiplied in.
    kinds = (np.int8, np.int16)
    assert sum(each.size for each in stored if each.dtype in kinds) >= filters
    assert max(each.size for each in stored if each.dtype == np.int16) == 16 * 9
    # What is not a code has one element per output at most.
    assert max(each.size for each in stored if each.dtype not in kinds) <= 40


def save_sums(path: Path, kind: str, *, lowest: int) -> tuple[Path, int]:
    """Write all convolutions as parts of one input, with scales that are exact.

    Many weights are the lowest and many the highest, and so are the codes of the image.
    """
    zero, _ = KINDS[kind]
    graph = Graph()
    count = sum(int(np.prod(case.image)) for case in CASES.values())
    x, parts, start = graph.input("x", (count,)), [], 0
    for case in CASES.values():
        end = start + int(np.prod(case.image))
        limits = (graph.constant(np.array([each], np.int64)) for each in (start, end))
        start = end
        shape = graph.constant(np.array(case.image, np.int64))
        image = graph.add("Reshape", graph.add("Slice", x, *limits), shape)
        codes = graph.random.choice([lowest, lowest, 127, 127, 5], case.filters).astype(np.int8)
        # An output whose pairs of products overflow int16 with -128, were it not for the method.
        codes[0] = lowest
        scales = (2.0 ** -graph.random.integers(5, 9, case.filters[0])).astype(np.float32)
        stored = (graph.constant(codes), graph.constant(scales))
        filters = graph.add("DequantizeLinear", *stored, axis=0)
        image = recode(graph, image, 2.0**-5, zero)
        result = graph.add("Conv", image, filters, **dict(case.attributes))
        parts.append(graph.add("Reshape", result, graph.constant(np.array([-1], np.int64))))
    joined = graph.add("Concat", *parts, axis=0)
    return finish(graph, joined, path, TensorProto.FLOAT), count


@pytest.mark.parametrize("features", [(), ("asimddp",)], ids=["pairs", "dot"])
@pytest.mark.parametrize(("kind", "lowest"), [("int8", -128), ("uint8", -128), ("uint8", -127)])
def test_arm_sums_codes_exactly(
    kind: str, lowest: int, features: tuple[str, ...], tmp_path: Path
) -> None:
    path, count = save_sums(tmp_path / "m.onnx", kind, lowest=lowest)
    target = make_target("aarch64", static=True, features=features)
    bundle = compile_model(describe(path), target, directory=tmp_path / "b", cache=cache_folder())
    assert bundle.unscheduled == ()
    feeds = {"x": (4 * np.random.default_rng(0).standard_normal(count)).astype(np.float32)}
    found, _ = run_program(bundle, feeds, tmp_path)
    np.testing.assert_array_equal(found.reshape(-1), run_model(path, feeds)[0])


@pytest.mark.parametrize(
    ("kind", "core", "features"),
    [
        ("int8", "cortex-a72", ()),
        ("uint8", "cortex-a72", ()),
        ("uint8", "cortex-a76", ("asimddp",)),
    ],
)
def test_arm_stores_onnxruntimes_codes(
    kind: str, core: str, features: tuple[str, ...], tmp_path: Path
) -> None:
    path, shape = save_chain(tmp_path / "codes.onnx", kind)
    model = onnx.load(path)
    zero, _ = KINDS[kind]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.02, np.float32), "step"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(zero), "zero"))
    last = model.graph.output[0]
    node = onnx.helper.make_node("DequantizeLinear", [last.name, "step", "zero"], ["y"])
    model.graph.node.append(node)
    last.name, last.type.tensor_type.elem_type = "y", TensorProto.FLOAT
    onnx.save(model, path)
    described = describe(path)
    target = make_target("aarch64", static=True, features=features)
    target = target.model_copy(update={"cluster": (Cluster(core=core, count=2),)})
    bundle = compile_model(described, target, directory=tmp_path / "b", cache=cache_folder())
    for seed in SEEDS:
        found, _ = run_program(bundle, draw(seed, shape), tmp_path)
        distance = np.abs(found - run_model(path, draw(seed, shape))[0])
        assert distance.max() <= 0.02 * 1.001
