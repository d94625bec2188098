"""Every operator against onnxruntime, and its gradient against finite differences."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeopt.errors import ModelError
from edgeopt.model.oracle import run_samples, seeded_inputs
from edgeopt.model.torch_graph import OPERATORS, TorchGraph
from tests.graphs import image_model, save_graph, text_model

Array = npt.NDArray[Any]
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
#: Largest difference from onnxruntime, as a share of the largest value.
CLOSE = 1e-5

#: Operators of one tensor, and where their values and gradients are defined.
UNARY: Mapping[str, tuple[float, float]] = {
    "Abs": (0.1, 3), "Ceil": (0.1, 0.9), "Cos": (-3, 3), "Dropout": (-3, 3), "Elu": (-3, 3),
    "Erf": (-3, 3), "Exp": (-3, 3), "Flatten": (-3, 3), "Floor": (0.1, 0.9), "Gelu": (-3, 3),
    "HardSigmoid": (-2, 2), "HardSwish": (-2.5, 2.5), "Identity": (-3, 3), "LeakyRelu": (-3, -0.1),
    "Log": (0.1, 3), "LogSoftmax": (-3, 3), "Neg": (-3, 3), "Reciprocal": (0.3, 3),
    "Relu": (0.1, 3), "Round": (0.6, 1.4), "Sigmoid": (-3, 3), "Sign": (0.1, 3), "Sin": (-3, 3),
    "Softmax": (-3, 3), "Softplus": (-3, 3), "Sqrt": (0.1, 3), "Squeeze": (-3, 3),
    "Tanh": (-3, 3), "Transpose": (-3, 3), "ReduceL1": (0.1, 3), "ReduceL2": (0.1, 3),
    "ReduceMax": (-3, 3), "ReduceMean": (-3, 3), "ReduceMin": (-3, 3), "ReduceSum": (-3, 3),
    "ReduceSumSquare": (-3, 3),
}  # fmt: skip
BINARY = ("Add", "Div", "Max", "Min", "Mul", "Pow", "PRelu", "Sub", "Sum")
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
LOGIC = ("And", "Or")


def floats(seed: int, *shape: int, low: float = -2, high: float = 2) -> Array:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def build(
    operator: str,
    feeds: Mapping[str, Array],
    stored: Mapping[str, Array],
    order: Sequence[str],
    outputs: int = 1,
    kind: int = TensorProto.FLOAT,
    **attributes: Any,
) -> ModelProto:
    """One node; what is fed is an input of the graph, what is stored an initializer."""
    names = [f"y{at}" for at in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(operator, order, names, **attributes)],
        "one",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in feeds.items()
        ],
        [helper.make_tensor_value_info(name, kind, None) for name in names],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    opset = 20 if operator == "Gelu" else 18
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def _size_of_terms(model: ModelProto, feeds: Mapping[str, Array]) -> float:
    """Say how large the terms of a sum or a mean are; it may be next to nothing, its rounding not.

    Of any other operator 0.
    """
    terms = np.abs(next(iter(feeds.values())).astype(float))
    operator = model.graph.node[0].op_type
    if operator == "ReduceSum":
        return float(terms.sum())
    return float(terms.max(initial=0)) if operator == "ReduceMean" else 0.0


def agrees(model: ModelProto, feeds: Mapping[str, Array], *, gradients: bool = True) -> None:
    """Compare with onnxruntime, one sample and three at once, and gradients with differences."""
    options = onnxruntime.SessionOptions()
    # As the oracle does: otherwise products with decoded weights round their other operand.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    wanted = session.run(None, dict(feeds))
    module = TorchGraph(model)
    given = {name: torch.from_numpy(value.copy()) for name, value in feeds.items()}
    least = max(1e-3, 0.01 * _size_of_terms(model, feeds))
    for got, expected in zip(module(given), wanted, strict=True):
        value = got.detach().numpy()
        assert value.shape == expected.shape
        scale = max(float(np.abs(expected.astype(float)).max(initial=0)), least)
        difference = np.abs(value.astype(float) - expected.astype(float)).max(initial=0)
        assert difference <= CLOSE * scale
    many = {name: torch.stack([value, value.flip(0), value]) for name, value in given.items()}
    if all(value.ndim for value in given.values()):
        for got, expected in zip(module.run_batch(many), module(given), strict=True):
            torch.testing.assert_close(got[2], expected)
    if gradients:
        module.double()
        smooth = [name for name, value in given.items() if value.is_floating_point()]

        def compute(*values: Any) -> Any:
            return module(given | dict(zip(smooth, values, strict=True)))

        doubled = [given[name].double().requires_grad_() for name in smooth]
        assert torch.autograd.gradcheck(compute, doubled, atol=1e-5)


@pytest.mark.parametrize("operator", UNARY)
@settings(max_examples=6, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_an_operator_of_one_tensor(operator: str, shape: list[int], seed: int) -> None:
    low, high = UNARY[operator]
    feeds = {"x": floats(seed, *shape, low=low, high=high)}
    agrees(build(operator, feeds, {}, ["x"]), feeds)


@pytest.mark.parametrize("operator", BINARY)
@settings(max_examples=6, deadline=None)
@given(shape=SHAPES, column=st.booleans(), seed=st.integers(0, 99))
def test_an_operator_of_two_tensors_that_broadcast(
    operator: str, shape: list[int], column: bool, seed: int
) -> None:
    other = [*shape[:-1], 1] if column else shape[-1:]
    feeds = {
        "a": floats(seed, *shape, low=0.3, high=2),
        "b": floats(seed + 1, *other, low=0.3, high=2),
    }
    agrees(build(operator, feeds, {}, ["a", "b"]), feeds)


@pytest.mark.parametrize("operator", [*COMPARISONS, *LOGIC, "Not"])
def test_truth_values_are_the_same(operator: str) -> None:
    x = np.random.default_rng(0).integers(0, 3, (4, 5))
    y = np.random.default_rng(1).integers(0, 3, (4, 5))
    feeds = {"a": x, "b": y} if operator in COMPARISONS else {"a": x > 0, "b": y > 0}
    if operator == "Not":
        feeds = {"a": x > 0}
    model = build(operator, feeds, {}, list(feeds), kind=TensorProto.BOOL)
    agrees(model, feeds, gradients=False)


@settings(max_examples=10, deadline=None)
@given(shape=SHAPES, rows=st.integers(1, 5), columns=st.integers(1, 6), seed=st.integers(0, 99))
def test_products(shape: list[int], rows: int, columns: int, seed: int) -> None:
    a, b = floats(seed, *shape[:-1], rows, shape[-1]), floats(seed + 1, shape[-1], columns)
    agrees(build("MatMul", {"a": a}, {"b": b}, ["a", "b"]), {"a": a})
    both = {"a": a, "b": floats(seed, *shape[:-1], shape[-1], columns)}
    agrees(build("MatMul", both, {}, ["a", "b"]), both)


@settings(max_examples=10, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4)),
    turned=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 99),
)
def test_gemm(sizes: tuple[int, int, int], turned: tuple[bool, bool], seed: int) -> None:
    rows, depth, columns = sizes
    a = {"a": floats(seed, *((depth, rows) if turned[0] else (rows, depth)))}
    stored = {
        "b": floats(seed + 1, *((columns, depth) if turned[1] else (depth, columns))),
        "c": floats(seed + 2, columns),
    }
    flags: dict[str, Any] = {
        "transA": int(turned[0]),
        "transB": int(turned[1]),
        "alpha": 0.5,
        "beta": 2.0,
    }
    agrees(build("Gemm", a, stored, ["a", "b", "c"], **flags), a)
    agrees(build("Gemm", a, {"b": stored["b"]}, ["a", "b"], transA=flags["transA"],
                 transB=flags["transB"]), a)  # fmt: skip


@pytest.mark.parametrize("padding", ["uneven", "SAME_UPPER", "SAME_LOWER", "VALID"])
@settings(max_examples=6, deadline=None)
@given(
    rank=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    # Of two, one side is padded more than the other.
    kernel=st.sampled_from([2, 1, 3]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
)
def test_convolutions(
    padding: str, rank: int, groups: int, kernel: int, stride: int, dilation: int
) -> None:
    # onnxruntime pads a dilated SAME as if it were not dilated.
    dilation = 1 if padding.startswith("SAME") else dilation
    feeds = {"x": floats(0, 2, 4, *[7] * rank)}
    stored = {"w": floats(1, 6, 4 // groups, *[kernel] * rank), "b": floats(2, 6)}
    attributes: dict[str, Any] = {
        "group": groups,
        "strides": [stride] * rank,
        "dilations": [dilation] * rank,
        **({"pads": [1] * rank + [2] * rank} if padding == "uneven" else {"auto_pad": padding}),
    }
    agrees(build("Conv", feeds, stored, ["x", "w", "b"], **attributes), feeds)


@settings(max_examples=10, deadline=None)
@given(
    operator=st.sampled_from(["MaxPool", "AveragePool"]),
    rank=st.integers(1, 2),
    kernel=st.integers(2, 3),
    stride=st.integers(1, 2),
    pads=st.sampled_from([(0, 0), (1, 1), (0, 1)]),
    inclusive=st.booleans(),
)
def test_pools(
    operator: str, rank: int, kernel: int, stride: int, pads: tuple[int, int], inclusive: bool
) -> None:
    feeds = {"x": floats(0, 2, 3, *[8] * rank)}
    attributes: dict[str, Any] = {
        "kernel_shape": [kernel] * rank,
        "strides": [stride] * rank,
        "pads": [pads[0]] * rank + [pads[1]] * rank,
    }
    if operator == "AveragePool":
        attributes["count_include_pad"] = int(inclusive)
    agrees(build(operator, feeds, {}, ["x"], **attributes), feeds)


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "GlobalMaxPool"])
def test_pools_of_everything(operator: str) -> None:
    feeds = {"x": floats(0, 2, 3, 5, 4)}
    agrees(build(operator, feeds, {}, ["x"]), feeds)


@settings(max_examples=6, deadline=None)
@given(shape=st.lists(st.integers(2, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_normalizations(shape: list[int], seed: int) -> None:
    feeds = {"x": floats(seed, *shape)}
    last = {"s": floats(1, shape[-1]), "b": floats(2, shape[-1])}
    model = build("LayerNormalization", feeds, last, ["x", "s", "b"], epsilon=1e-6)
    agrees(model, feeds)
    channels = {name: floats(at, shape[1]) for at, name in enumerate("sbm")}
    channels["v"] = floats(3, shape[1], low=0.5, high=2)
    agrees(build("BatchNormalization", feeds, channels, ["x", *"sbmv"]), feeds)
    if len(shape) > 2:
        own = {name: channels[name] for name in "sb"}
        agrees(build("InstanceNormalization", feeds, own, ["x", "s", "b"]), feeds)


MOVES: Mapping[str, tuple[str, Mapping[str, Array], Mapping[str, Any]]] = {
    "zeros copy dimensions": ("Reshape", {"s": np.array([0, -1])}, {}),
    "an allowed zero is none": ("Reshape", {"s": np.array([6, 4])}, {"allowzero": 1}),
    "permuted": ("Transpose", {}, {"perm": [2, 0, 1]}),
    "a column more": ("Unsqueeze", {"s": np.array([0, -1])}, {}),
    "wider": ("Expand", {"s": np.array([3, 2, 1, 4])}, {}),
    "flat from the second": ("Flatten", {}, {"axis": 2}),
    "rows by place": ("Gather", {"s": np.array([[2, 0], [-1, 1]])}, {"axis": 1}),
    "summed but kept": ("ReduceSum", {"s": np.array([-1, 0])}, {"keepdims": 0}),
    "the mean of an axis": ("ReduceMean", {"s": np.array([1])}, {}),
    "no axes are none": ("ReduceMean", {"s": np.array([], int)}, {"noop_with_empty_axes": 1}),
    "within limits": ("Clip", {"low": floats(0, low=-1, high=-1), "high": floats(0)}, {}),
    "padded": ("Pad", {"s": np.array([0, 1, 0, 2, 0, 1]), "v": np.array(3, np.float32)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVES)
def test_a_form_of_an_operator(case: str) -> None:
    operator, stored, attributes = MOVES[case]
    feeds = {"x": floats(3, 2, 3, 4)}
    agrees(build(operator, feeds, stored, ["x", *stored], **attributes), feeds)


def test_parts_are_cut_and_joined() -> None:
    feeds = {"x": floats(0, 2, 7), "z": floats(1, 2, 3)}
    agrees(build("Concat", feeds, {}, ["x", "z"], axis=-1), feeds)
    one = {"x": feeds["x"]}
    agrees(build("Split", one, {}, ["x"], outputs=3, axis=1, num_outputs=3), one)
    agrees(build("Split", one, {"s": np.array([4, 3])}, ["x", "s"], outputs=2, axis=1), one)
    for start, end, step in ((1, 5, 1), (-1, -(2**31) - 5, -2), (6, 1, -1), (1, 2**40, 3)):
        ranges = {name: np.array([at]) for name, at in zip("abcd", (start, end, 1, step),
                                                           strict=True)}  # fmt: skip
        agrees(build("Slice", one, ranges, ["x", *"abcd"]), one)


def test_a_choice_between_tensors_and_a_cast() -> None:
    feeds = {"c": np.array([[True], [False]]), "a": floats(0, 2, 3), "b": floats(1, 3)}
    agrees(build("Where", feeds, {}, ["c", "a", "b"]), feeds)
    whole = {"x": np.array([[1, 0, 3]])}
    agrees(build("Cast", whole, {}, ["x"], to=TensorProto.FLOAT), whole, gradients=False)


def quantizing() -> tuple[ModelProto, dict[str, Array]]:
    text = """
    codes (float[2,8] x) => (float[2,4] y) {
        c = QuantizeLinear(x, s, z)
        d = DequantizeLinear(c, s, z)
        w = DequantizeLinear<axis=1>(k, t)
        y = MatMul(d, w)
    }"""
    stored = {
        "s": np.float32(0.02),
        "z": np.uint8(120),
        "k": np.random.default_rng(0).integers(-127, 128, (8, 4)).astype(np.int8),
        "t": floats(1, 4, low=0.01, high=0.03),
    }
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 18]>' + text)
    for name, value in stored.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model, {"x": floats(2, 2, 8, low=-3, high=3.5)}


def test_codes_are_computed_and_gradients_pass_the_rounding() -> None:
    model, feeds = quantizing()
    agrees(model, feeds, gradients=False)
    x = torch.from_numpy(feeds["x"]).requires_grad_()
    module = TorchGraph(model)
    module({"x": x})[0].sum().backward()
    columns = np.array(numpy_helper.to_array(model.graph.initializer[2]), np.float32)
    slope = columns @ numpy_helper.to_array(model.graph.initializer[3])
    # Beyond the last code nothing changes; within them rounding is as if it were not there.
    found = np.rint(feeds["x"] / np.float32(0.02)) + 120
    inside = (found >= 0) & (found <= 255)
    assert inside.any()
    assert not inside.all()
    np.testing.assert_allclose(x.grad.numpy(), np.where(inside, slope, 0), rtol=1e-4)


def test_blocks_of_four_bits_are_decoded() -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (32, 6))
    kinds = onnx.helper.make_tensor("k", TensorProto.INT4, codes.shape, codes.ravel())
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["k", "t"], ["w"], axis=0, block_size=16),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "blocks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [kinds, numpy_helper.from_array(floats(1, 2, 6), "t")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    agrees(model, {"x": floats(2, 3, 32)})


def test_every_operator_is_compared_with_onnxruntime() -> None:
    elsewhere = {
        "MatMul", "Gemm", "Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool",
        "LayerNormalization", "BatchNormalization", "InstanceNormalization", "Concat", "Split",
        "Slice", "Where", "Cast", "QuantizeLinear", "DequantizeLinear", "Not",
    }  # fmt: skip
    forms = {operator for operator, _, _ in MOVES.values()}
    tested = elsewhere | forms | set(UNARY) | set(BINARY) | set(COMPARISONS) | set(LOGIC)
    assert set(OPERATORS) == tested


@pytest.mark.parametrize("make", [text_model, image_model])
def test_a_model_runs_many_samples_at_once(tmp_path: Path, make: Any) -> None:
    model = make(tmp_path)
    rows = [seeded_inputs(model, seed) for seed in range(5)]
    feeds = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    wanted = run_samples(model, feeds)[0]
    module = TorchGraph(onnx.load(model.path))
    given = {name: torch.from_numpy(value) for name, value in feeds.items()}
    got = module.run_batch(given)[0].detach().numpy()
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= CLOSE * np.abs(wanted).max()


def test_offsets_give_each_sample_the_gradient_of_an_inner_tensor(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    module = TorchGraph(onnx.load(model.path))
    one = {name: torch.from_numpy(value) for name, value in seeded_inputs(model, 0).items()}
    two = {name: torch.stack([value, value.flip(-1)]) for name, value in one.items()}
    offsets = {"hidden": torch.zeros(2, 1, 8, 64, requires_grad=True)}
    module.run_batch(two, offsets)[0][:, 0, 2].sum().backward()
    for place in range(2):
        alone = {"hidden": torch.zeros(1, 8, 64, requires_grad=True)}
        module({name: value[place] for name, value in two.items()}, alone)[0][0, 2].backward()
        torch.testing.assert_close(offsets["hidden"].grad[place], alone["hidden"].grad)
    assert offsets["hidden"].grad.abs().sum() > 0


def test_trained_values_are_written_back_to_the_same_graph(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    loaded = onnx.load(model.path)
    module = TorchGraph(loaded)
    with torch.no_grad():
        module.parameter("head_bias").add_(1.0)
    module.write_to(loaded)
    again = onnx.load(model.path)
    changed = [
        old.name
        for old, new in zip(again.graph.initializer, loaded.graph.initializer, strict=True)
        if old.SerializeToString() != new.SerializeToString()
    ]
    assert changed == ["head_bias"]
    assert "head_bias" in module.parameter_names


def test_unknown_operators_are_named_all_at_once(tmp_path: Path) -> None:
    text = """
    strange (float[4,4] x) => (float[4,4] y) { a = Det(x)  b = Trilu(x)  y = Add(a, b) }"""
    path = save_graph(tmp_path / "m.onnx", text, {})
    with pytest.raises(ModelError, match="Det, Trilu") as caught:
        TorchGraph(onnx.load(path))
    assert caught.value.why
    assert caught.value.fix


@pytest.mark.parametrize(
    ("operator", "attributes", "why"),
    [
        ("MaxPool", {"kernel_shape": [2], "ceil_mode": 1}, "ceil_mode"),
        ("AveragePool", {"kernel_shape": [2], "dilations": [2]}, "gaps"),
        ("Cast", {"to": TensorProto.STRING}, "no type"),
    ],
)
def test_a_form_without_a_counterpart_is_refused_with_its_node(
    operator: str, attributes: dict[str, Any], why: str
) -> None:
    feeds = {"x": floats(0, 1, 2, 5)}
    module = TorchGraph(build(operator, feeds, {}, ["x"], **attributes))
    with pytest.raises(ModelError, match="makes 'y0'") as caught:
        module({"x": torch.from_numpy(feeds["x"])})
    assert why in caught.value.why
