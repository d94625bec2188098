"""Kernels as 64-bit ARM runs them, many shapes in one program: edges, batches, stored types."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.artifact import Model, TensorSpec
from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.compile.cpu import describe_cpu
from edgeopt.compile.import_onnx import import_model
from edgeopt.compile.lower import lower_module
from edgeopt.model.oracle import run_model
from edgeopt.target import Cluster
from tests.compile.kit import Array, distance, make_target
from tests.host.test_compile import run_program

pytestmark = pytest.mark.host

Products = tuple[tuple[tuple[tuple[int, ...], int, int], str], ...]

#: Rows, depth and columns of products: whole tiles, ragged ones, fewer rows than a tile, one.
PRODUCTS: Products = (
    (((16,), 24, 24), "float32"),
    (((37,), 67, 65), "float32"),
    (((13,), 5, 24), "float32"),
    (((197,), 33, 12), "float32"),
    (((3,), 31, 7), "float32"),
    (((1,), 40, 50), "float32"),
    (((3, 11), 19, 23), "float32"),
    (((2, 3, 9), 16, 40), "float32"),
    (((29,), 64, 48), "float16"),
    # More rows than are packed at a time.
    (((600,), 256, 16), "float32"),
)
INPUTS = 600 * 256


#: Products in half: whole pieces of K and ragged ones, edges of tiles, few rows, one.
HALF_PRODUCTS: Products = tuple(
    (shape, "float16")
    for shape in (
        ((16,), 64, 48),
        ((37,), 67, 65),
        ((13,), 25, 100),
        ((197,), 260, 12),
        ((3,), 64, 40),
        ((1,), 40, 50),
        ((3, 11), 190, 23),
        ((2, 3, 9), 160, 40),
        ((5,), 165, 18),
        ((40,), 384, 100),
        # More rows than are packed at a time.
        ((600,), 256, 16),
    )
)


def save_products(path: Path, products: Products = PRODUCTS) -> Path:
    """Write a model that feeds one long vector to every product and joins what they give."""
    random = np.random.default_rng(7)
    nodes, stored, joined = [], [], []

    def constant(name: str, value: Array) -> str:
        stored.append(numpy_helper.from_array(value, name))
        return name

    for place, ((rows, depth, columns), dtype) in enumerate(products):
        size = int(np.prod(rows)) * depth
        weight = random.standard_normal((depth, columns)).astype(dtype)
        bias = random.standard_normal(columns).astype("float32")
        name = constant(f"w{place}", weight)
        if dtype == "float16":
            nodes.append(helper.make_node("Cast", [name], [f"wide{place}"], to=TensorProto.FLOAT))
            name = f"wide{place}"
        first = constant(f"first{place}", np.array([0], "int64"))
        end = constant(f"end{place}", np.array([size], "int64"))
        shape = constant(f"shape{place}", np.array([*rows, depth], "int64"))
        flat = constant(f"flat{place}", np.array([-1], "int64"))
        nodes += [
            helper.make_node("Slice", ["x", first, end], [f"part{place}"]),
            helper.make_node("Reshape", [f"part{place}", shape], [f"a{place}"]),
            helper.make_node("MatMul", [f"a{place}", name], [f"m{place}"]),
            helper.make_node("Add", [f"m{place}", constant(f"b{place}", bias)], [f"s{place}"]),
            helper.make_node("Relu", [f"s{place}"], [f"r{place}"]),
            helper.make_node("Reshape", [f"r{place}", flat], [f"y{place}"]),
        ]
        joined.append(f"y{place}")
    nodes.append(helper.make_node("Concat", joined, ["y"], axis=0))
    return _save(path, nodes, stored, (INPUTS,))


def save_convolutions(path: Path) -> Path:
    """Write a text convolution whose width no tile divides, then one over images."""
    random = np.random.default_rng(8)
    text = random.standard_normal((20, 24, 3)).astype("float32")
    image = random.standard_normal((13, 20, 3, 3)).astype("float32")
    stored = [
        numpy_helper.from_array(text, "text"),
        numpy_helper.from_array(image, "image"),
        numpy_helper.from_array(np.array([1, 20, 2, 31], "int64"), "shape"),
        numpy_helper.from_array(np.array([-1], "int64"), "flat"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "text"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Conv", ["c", "image"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["d", "flat"], ["y"]),
    ]
    return _save(path, nodes, stored, (1, 24, 64))


def save_unfolded(path: Path) -> Path:
    """Write convolutions of many outputs: pads, a stride, a dilation, rows that no tile divides."""
    random = np.random.default_rng(9)
    stored = [
        numpy_helper.from_array(random.standard_normal(shape).astype("float32"), name)
        for name, shape in {
            "text": (50, 24, 5),
            "image": (37, 10, 3, 3),
            "bias": (37,),
            "stem": (24, 37, 2, 3),
        }.items()
    ]
    stored.append(numpy_helper.from_array(np.array([1, 10, 5, 60], "int64"), "shape"))
    stored.append(numpy_helper.from_array(np.array([-1], "int64"), "flat"))
    nodes = [
        helper.make_node("Conv", ["x", "text"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("Conv", ["b", "image", "bias"], ["c"], pads=[1, 2, 0, 1], strides=[1, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "stem"], ["e"], dilations=[2, 3]),
        helper.make_node("Reshape", ["e", "flat"], ["y"]),
    ]
    return _save(path, nodes, stored, (1, 24, 64))


Layers = tuple[tuple[str, int, dict[str, Any]], ...]

#: Cells, units that vectors divide and not, and options: "states" start a layer and are given.
GATED: Layers = (
    ("GRU", 19, {}),
    ("GRU", 32, {"linear_before_reset": 1}),
    ("RNN", 50, {}),
)
LSTMS: Layers = (
    ("LSTM", 24, {}),
    ("LSTM", 37, {"direction": "bidirectional"}),
    ("LSTM", 64, {"direction": "bidirectional"}),
    ("LSTM", 48, {"direction": "reverse"}),
)
STATES: Layers = (("LSTM", 33, {"states": True}),)


def save_recurrent(path: Path, layers: Layers, steps: int) -> Path:
    """Write layers of one row, each of which is given the same inputs."""
    random = np.random.default_rng(10)
    nodes, stored, joined = [], [], []
    flat = numpy_helper.from_array(np.array([-1], "int64"), "flat")
    for cell, hidden, given in layers:
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell]
        options = {name: value for name, value in given.items() if name != "states"}
        ways = 2 if options.get("direction") == "bidirectional" else 1
        name = f"{cell}{hidden}"
        for kind, shape in {
            "w": (ways, gates * hidden, 18),
            "r": (ways, gates * hidden, hidden),
            "b": (ways, 2 * gates * hidden),
            "h": (ways, 1, hidden),
            "c": (ways, 1, hidden),
        }.items():
            values = random.standard_normal(shape).astype("float32") / 4
            stored.append(numpy_helper.from_array(values, kind + name))
        inputs = ["x", "w" + name, "r" + name, "b" + name]
        outputs = [f"s{name}"]
        if "states" in given:
            inputs += ["", "h" + name, "c" + name]
            outputs += [f"t{name}", f"u{name}"]
        nodes.append(helper.make_node(cell, inputs, outputs, hidden_size=hidden, **options))
        for output in outputs:
            nodes.append(helper.make_node("Reshape", [output, "flat"], ["y" + output]))
            joined.append("y" + output)
    nodes.append(helper.make_node("Concat", joined, ["y"], axis=0))
    return _save(path, nodes, [*stored, flat], (steps, 1, 18))


#: Rows, depth and columns of products of codes, and the codes' type.
CODE_PRODUCTS: Products = (
    (((1,), 64, 48), "int8"),
    (((1,), 37, 7), "uint8"),
    (((4,), 16, 4), "int8"),
    (((7,), 33, 19), "uint8"),
    (((37,), 67, 65), "int8"),
    (((2, 3, 9), 20, 40), "uint8"),
    (((16,), 384, 24), "int8"),
    # More rows than are packed at a time.
    (((600,), 900, 8), "uint8"),
)

#: The same whose weights are mostly small, so that four products may be added in int16.
CALM_PRODUCTS: Products = (
    (((4,), 64, 8), "int8"),
    (((37,), 80, 65), "uint8"),
    (((5,), 48, 19), "int8"),
    (((1,), 400, 20), "uint8"),
    (((2, 3, 9), 272, 40), "uint8"),
    (((16,), 384, 24), "int8"),
    (((3,), 330, 12), "int8"),
)


def draw_extreme(random: np.random.Generator, place: int, depth: int, columns: int) -> Array:
    """Draw codes of which many are the smallest and the largest that there are."""
    lowest = -128 if place % 2 else -127
    codes = random.choice([lowest, lowest, 127, 3, -5], (depth, columns)).astype(np.int8)
    # A column that overflows int16 in pairs, were it not for the method.
    codes[:, 0] = lowest
    return codes


def draw_calm(random: np.random.Generator, place: int, depth: int, columns: int) -> Array:
    """Draw codes as trained weights are spread; two blocks are at the limit and just beyond."""
    del place
    codes = (36 * random.standard_normal((depth, columns))).round().clip(-127, 127)
    for first, largest in ((0, -127), (32, -126)):
        # Each lane of int16 adds what is eight rows apart: 256 or 255 times 128 with its sign.
        for row, value in enumerate((-127, largest, -1, -1)):
            codes[first + 8 * row : first + 8 * row + 8, 0] = value
    return codes.astype(np.int8)


def save_code_products(
    path: Path, products: Products = CODE_PRODUCTS, draw: Callable[..., Array] = draw_extreme
) -> Path:
    """Write products of codes.

    One over a power of two is exact, so that the codes are onnxruntime's.
    """
    random = np.random.default_rng(9)
    nodes, stored, joined = [], [], []

    def constant(name: str, value: Array | np.generic) -> str:
        stored.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    for place, ((rows, depth, columns), dtype) in enumerate(products):
        size = int(np.prod(rows)) * depth
        codes = draw(random, place, depth, columns)
        limits = [
            constant(f"scale{place}", np.float32(2.0**-5)),
            constant(f"zero{place}", np.dtype(dtype).type(3)),
        ]
        scales = constant(f"scales{place}", random.uniform(1e-3, 3e-3, columns).astype("float32"))
        zeros = constant(f"zeros{place}", np.zeros(columns, "int8"))
        weight = [constant(f"w{place}", codes), scales, zeros]
        first = constant(f"first{place}", np.array([0], "int64"))
        end = constant(f"end{place}", np.array([size], "int64"))
        shape = constant(f"shape{place}", np.array([*rows, depth], "int64"))
        flat = constant(f"flat{place}", np.array([-1], "int64"))
        nodes += [
            helper.make_node("Slice", ["x", first, end], [f"part{place}"]),
            helper.make_node("Reshape", [f"part{place}", shape], [f"a{place}"]),
            helper.make_node("QuantizeLinear", [f"a{place}", *limits], [f"q{place}"]),
            helper.make_node("DequantizeLinear", [f"q{place}", *limits], [f"d{place}"]),
            helper.make_node("DequantizeLinear", weight, [f"v{place}"], axis=1),
            helper.make_node("MatMul", [f"d{place}", f"v{place}"], [f"m{place}"]),
            helper.make_node("Reshape", [f"m{place}", flat], [f"y{place}"]),
        ]
        joined.append(f"y{place}")
    nodes.append(helper.make_node("Concat", joined, ["y"], axis=0))
    return _save(path, nodes, stored, (600 * 900,))


#: Heads, queries, keys, size of a head, and whether the last keys are hidden.
ATTENTIONS = (
    (4, 16, 16, 32, False),
    (3, 13, 13, 20, True),
    (1, 7, 7, 5, False),
    (2, 37, 29, 10, True),
    (1, 1, 9, 8, False),
    (5, 4, 6, 3, True),
    (2, 130, 67, 36, False),
)


def save_attentions(path: Path) -> Path:
    """Write attention over slices of one vector: heads are transposed on the way in and out."""
    random = np.random.default_rng(11)
    nodes: list[onnx.NodeProto] = []
    stored: list[TensorProto] = []
    joined = []

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(value: Array) -> str:
        stored.append(numpy_helper.from_array(value, f"constant{len(stored)}"))
        return str(stored[-1].name)

    def split(length: int, heads: int, size: int, order: list[int]) -> str:
        ends = [constant(np.array([end], "int64")) for end in (0, length * heads * size)]
        shape = constant(np.array([1, length, heads, size], "int64"))
        part = add("Reshape", add("Slice", "x", *ends), shape)
        # Not a view of the input, and each of its own.
        shift = random.standard_normal((1, 1, heads, size)).astype("float32")
        return add("Transpose", add("Add", part, constant(shift)), perm=order)

    flat = constant(np.array([-1], "int64"))
    for heads, queries, keys, size, hides in ATTENTIONS:
        query = split(queries, heads, size, [0, 2, 1, 3])
        scores = add("MatMul", query, split(keys, heads, size, [0, 2, 3, 1]))
        scores = add("Div", scores, constant(np.array(size**0.5, "float32")))
        if hides:
            mask = np.zeros((1, 1, 1, keys), "float32")
            mask[..., keys // 2 :] = -10000.0
            scores = add("Add", scores, constant(mask))
        shares = add("Softmax", scores, axis=-1)
        mixed = add("MatMul", shares, split(keys, heads, size, [0, 2, 1, 3]))
        joined.append(add("Reshape", add("Transpose", mixed, perm=[0, 2, 1, 3]), flat))
    nodes.append(helper.make_node("Concat", joined, ["y"], axis=0))
    longest = max(max(q, k) * heads * size for heads, q, k, size, _ in ATTENTIONS)
    return _save(path, nodes, stored, (longest,))


def _save(
    path: Path,
    nodes: list[onnx.NodeProto],
    stored: list[TensorProto],
    shape: tuple[int, ...],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "kernels",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def describe(path: Path) -> Model:
    """Describe a model of one input and one output."""
    graph = onnx.load(path).graph
    specs = [
        TensorSpec(
            name=each.name,
            dtype="float32",
            shape=tuple(dim.dim_value for dim in each.type.tensor_type.shape.dim),
        )
        for each in (*graph.input, *graph.output)
    ]
    return Model(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        inputs=(specs[0],),
        outputs=(specs[1],),
        parameters=1,
        provenance=("test",),
    )


@pytest.mark.parametrize(
    "save",
    [
        save_products,
        save_convolutions,
        save_unfolded,
        *(
            partial(save_recurrent, layers=layers, steps=steps)
            # Fewer steps than a tile of inputs has rows, and a ragged last tile.
            for layers, steps in ((GATED, 6), (LSTMS, 5), (LSTMS, 21), (STATES, 5), (STATES, 21))
        ),
        save_attentions,
    ],
)
def test_kernels_agree_with_onnxruntime_at_odd_sizes(save: object, tmp_path: Path) -> None:
    assert callable(save)
    model = describe(save(tmp_path / "model.onnx"))
    target = make_target("aarch64", static=True)
    bundle = compile_model(model, target, directory=tmp_path / "bundle", cache=cache_folder())
    assert bundle.unscheduled == ()
    for seed in (0, 1, 2):
        random = np.random.default_rng(seed)
        feeds = {"x": random.standard_normal(model.inputs[0].shape).astype("float32")}
        found, _ = run_program(bundle, feeds, tmp_path)
        assert distance(found, run_model(model.path, feeds)[0]) < 2e-6


def save_channelwise(path: Path) -> Path:
    """Write depthwise convolutions and pools: whole tiles of columns and ragged ones, strides.

    Windows of 25 taps are walked line by line.
    """
    random = np.random.default_rng(11)
    kernels = {"first": (3, 3), "second": (3, 3), "third": (5, 5), "fourth": (5, 4)}
    stored = [
        numpy_helper.from_array(random.standard_normal((12, 1, *kernel)).astype("float32"), name)
        for name, kernel in kernels.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], pads=[1] * 4, group=12),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Conv", ["c", "second"], ["d"], pads=[1] * 4, strides=[2, 2], group=12),
        helper.make_node("AveragePool", ["d"], ["e"], kernel_shape=[2, 2]),
        helper.make_node("Conv", ["e", "third"], ["f"], pads=[2] * 4, group=12),
        helper.make_node(
            "Conv", ["f", "fourth"], ["y"], pads=[2, 3, 2, 0], dilations=[1, 2], group=12
        ),
    ]
    return _save(path, nodes, stored, (1, 12, 30, 29))


@pytest.mark.parametrize(
    "save", [save_channelwise, save_products, partial(save_recurrent, layers=GATED, steps=6)]
)
def test_tiles_of_a_core_in_program_order_agree_with_onnxruntime(
    save: object, tmp_path: Path
) -> None:
    assert callable(save)
    model = describe(save(tmp_path / "model.onnx"))
    target = make_target("aarch64", static=True)
    target = target.model_copy(update={"cluster": (Cluster(core="cortex-a53", count=2),)})
    assert describe_cpu(target).in_order
    bundle = compile_model(model, target, directory=tmp_path / "bundle", cache=cache_folder())
    assert bundle.unscheduled == ()
    random = np.random.default_rng(0)
    feeds = {"x": random.standard_normal(model.inputs[0].shape).astype("float32")}
    found, _ = run_program(bundle, feeds, tmp_path)
    assert distance(found, run_model(model.path, feeds)[0]) < 2e-6


@pytest.mark.parametrize(
    "features", [(), ("asimddp",), ("asimddp", "i8mm")], ids=["pairs", "dot", "matrix"]
)
def test_products_of_codes_are_exact_at_odd_sizes_and_extreme_codes(
    features: tuple[str, ...], tmp_path: Path
) -> None:
    model = describe(save_code_products(tmp_path / "model.onnx"))
    target = make_target("aarch64", static=True, features=features)
    bundle = compile_model(model, target, directory=tmp_path / "bundle", cache=cache_folder())
    assert bundle.unscheduled == ()
    random = np.random.default_rng(0)
    # Half of the codes are limited: -128 and 127, or 0 and 255.
    feeds = {"x": (4 * random.standard_normal(model.inputs[0].shape)).astype("float32")}
    found, _ = run_program(bundle, feeds, tmp_path)
    assert distance(found, run_model(model.path, feeds)[0]) < 2e-6


def test_four_products_are_added_in_int16_where_they_fit_and_nowhere_else(tmp_path: Path) -> None:
    model = describe(save_code_products(tmp_path / "model.onnx", CALM_PRODUCTS, draw_calm))
    target = make_target("aarch64", static=True)
    lowered = lower_module(import_model(model.path), describe_cpu(target)).module
    assert lowered.script(show_meta=False).count("edgeopt_quad") >= len(CALM_PRODUCTS)
    bundle = compile_model(model, target, directory=tmp_path / "bundle", cache=cache_folder())
    random = np.random.default_rng(0)
    x = (4 * random.standard_normal(model.inputs[0].shape)).astype("float32")
    # The first row of each product is of the lowest codes, which sums are largest with.
    x[:400] = -100.0
    found, _ = run_program(bundle, {"x": x}, tmp_path)
    assert distance(found, run_model(model.path, {"x": x})[0]) < 2e-6


HALF = ("fphp", "asimdhp")


def multiply_halves(path: Path, x: Array) -> Array:
    """Compute the products as the assembly does: 64 steps in half, what they give in float32."""
    stored = {each.name: numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    joined = []
    for place, ((rows, depth, columns), _) in enumerate(HALF_PRODUCTS):
        a = x[: int(np.prod(rows)) * depth].reshape(-1, depth)
        b = stored[f"w{place}"].astype(np.float64)
        total = np.zeros((len(a), columns), np.float32)
        if rows[-1] < 4:
            total += a.astype(np.float64) @ b
        else:
            halves = a.astype(np.float16).astype(np.float64)
            for first in range(0, depth, 64):
                part = np.zeros(total.shape, np.float16)
                for k in range(first, min(first + 64, depth)):
                    # Exact in 53 bits, so that it is rounded once, as by FMLA.
                    part = (halves[:, k, None] * b[k] + part).astype(np.float16)
                total += part
        joined.append(np.maximum(total + stored[f"b{place}"], 0).reshape(-1))
    return np.concatenate(joined)


def test_halves_are_multiplied_in_half_and_their_sums_kept_in_float32(tmp_path: Path) -> None:
    model = describe(save_products(tmp_path / "model.onnx", HALF_PRODUCTS))
    target = make_target("aarch64", static=True, features=HALF)
    bundle = compile_model(model, target, directory=tmp_path / "bundle", cache=cache_folder())
    assert bundle.unscheduled == ()
    for seed in (0, 1, 2):
        random = np.random.default_rng(seed)
        feeds = {"x": random.standard_normal(model.inputs[0].shape).astype("float32")}
        found, _ = run_program(bundle, feeds, tmp_path)
        assert distance(found, multiply_halves(model.path, feeds["x"])) < 2e-6
        # Of float32 it is off by what half rounds, and by no more.
        assert 1e-5 < distance(found, run_model(model.path, feeds)[0]) < 3e-3


def test_convolutions_of_filters_in_half_agree_within_its_rounding(tmp_path: Path) -> None:
    path = save_unfolded(tmp_path / "model.onnx")
    store_halves(path, ("text", "image", "stem"))
    model = describe(path)
    target = make_target("aarch64", static=True, features=HALF)
    bundle = compile_model(model, target, directory=tmp_path / "bundle", cache=cache_folder())
    assert bundle.unscheduled == ()
    random = np.random.default_rng(0)
    feeds = {"x": random.standard_normal(model.inputs[0].shape).astype("float32")}
    found, _ = run_program(bundle, feeds, tmp_path)
    assert 1e-5 < distance(found, run_model(model.path, feeds)[0]) < 5e-3


def store_halves(path: Path, names: tuple[str, ...]) -> None:
    """Store constants of a model in half, each with a cast to float32."""
    model = onnx.load(path)
    for each in model.graph.initializer:
        if each.name in names:
            cast = helper.make_node("Cast", [f"{each.name}_half"], [each.name], to=1)
            model.graph.node.insert(0, cast)
            values = numpy_helper.to_array(each).astype(np.float16)
            each.CopyFrom(numpy_helper.from_array(values, f"{each.name}_half"))
    onnx.save(model, path)
