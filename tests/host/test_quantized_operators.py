"""Operators on codes, of the standard and of onnxruntime, against onnxruntime's own kernels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.compile.lift import lift_constants
from edgeopt.model.oracle import run_model
from tests.compile.kit import Array, distance, lower_natively, make_target, run_natively
from tests.host.test_arm import describe
from tests.host.test_compile import run_program

pytestmark = pytest.mark.host

CODES = (np.uint8, np.int8)
MICROSOFT = "com.microsoft"


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    feeds: Mapping[str, Array],
    stored: Mapping[str, Any],
    outputs: Mapping[str, int],
    *,
    opset: int = 21,
) -> Path:
    """Write a model of a few nodes; outputs are element types by name."""
    graph = helper.make_graph(
        nodes,
        "quantized",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in feeds.items()
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def draw_codes(random: np.random.Generator, kind: Any, *shape: int) -> Array:
    """Draw codes over all of a type's range, narrow types included."""
    name = np.dtype(kind).name
    bits = int(name.lstrip("uint"))
    low = 0 if name.startswith("u") else -(1 << (bits - 1))
    return random.integers(low, low + (1 << bits), shape).astype(kind)


def draw(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape).astype(np.float32)


def scales(random: np.random.Generator, *shape: int) -> Array:
    return random.uniform(0.01, 0.02, shape).astype(np.float32)


def run_both(
    path: Path, feeds: Mapping[str, Array], *, optimize: bool = False
) -> list[tuple[Array, Array]]:
    """Pair our results with onnxruntime's: as the nodes say, without its own fusions."""
    found, wanted = run_natively(path, feeds), run_model(path, feeds, optimize=optimize)
    return list(zip(found, wanted, strict=True))


def compare_codes(path: Path, feeds: Mapping[str, Array], *, share: float = 0.0) -> None:
    """Allow the neighbouring code for so large a share of the codes, and no other."""
    for found, wanted in run_both(path, feeds):
        apart = np.abs(found.astype(np.int32) - wanted.astype(np.int32))
        assert found.shape == wanted.shape
        assert apart.max() <= 1
        assert np.count_nonzero(apart) <= share * apart.size


def parameters(kind: Any) -> dict[str, Any]:
    """Name scales and zero points of two operands and a result."""
    first, second, result = (120, 5, 131) if kind is np.uint8 else (-3, 5, 9)
    zeros = {"az": first, "bz": second, "yz": result}
    named = {name: np.asarray(value, kind) for name, value in zeros.items()}
    factors = {"as": 0.02, "bs": 0.03, "ys": 0.05}
    return {**named, **{name: np.asarray(value, np.float32) for name, value in factors.items()}}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("operator", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("stored", [False, True])
def test_sums_and_products_of_codes_are_onnxruntimes(
    operator: str, kind: Any, stored: bool, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    given = {"a": draw_codes(random, kind, 2, 5, 7)}
    other = {"b": draw_codes(random, kind, 5, 1)}
    feeds, constants = (given, other) if stored else (given | other, {})
    names = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    node = helper.make_node(operator, names, ["y"], domain=MICROSOFT)
    kinds = {"y": helper.np_dtype_to_tensor_dtype(np.dtype(kind))}
    path = save(tmp_path / "m.onnx", [node], feeds, parameters(kind) | constants, kinds)
    compare_codes(path, feeds)


#: Operator, attributes, shape, and the share of codes that lie next to a tie.
UNARY: tuple[tuple[str, dict[str, Any], tuple[int, ...], float], ...] = (
    ("QLinearSigmoid", {}, (2, 5, 7), 0.0),
    ("QLinearLeakyRelu", {"alpha": 0.1}, (2, 5, 7), 0.0),
    ("QLinearSoftmax", {"opset": 13, "axis": -1}, (3, 11), 0.0),
    ("QLinearSoftmax", {"opset": 11, "axis": 1}, (2, 5, 7), 0.0),
    ("QLinearGlobalAveragePool", {"channels_last": 0}, (1, 6, 9, 8), 0.0),
    ("QLinearGlobalAveragePool", {"channels_last": 1}, (1, 6, 9, 8), 0.0),
    # The mean of few codes is often halfway between two.
    (
        "QLinearAveragePool",
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
        (1, 6, 9, 8),
        0.1,
    ),
    (
        "QLinearAveragePool",
        {"kernel_shape": [3, 3], "pads": [1] * 4, "channels_last": 1},
        (1, 6, 9, 8),
        0.1,
    ),
)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("case", UNARY, ids=str)
def test_functions_of_codes_are_onnxruntimes(case: Any, kind: Any, tmp_path: Path) -> None:
    operator, attributes, shape, share = case
    feeds = {"a": draw_codes(np.random.default_rng(1), kind, *shape)}
    node = helper.make_node(
        operator, ["a", "as", "az", "ys", "yz"], ["y"], domain=MICROSOFT, **attributes
    )
    named = parameters(kind)
    if operator in ("QLinearSigmoid", "QLinearSoftmax"):
        lowest = np.iinfo(kind).min
        named |= {"ys": np.float32(1 / 256), "yz": np.asarray(lowest, kind)}
    else:
        named |= {"ys": np.float32(0.013)}
    kinds = {"y": helper.np_dtype_to_tensor_dtype(np.dtype(kind))}
    path = save(tmp_path / "m.onnx", [node], feeds, named, kinds)
    compare_codes(path, feeds, share=share)


@pytest.mark.parametrize("kind", CODES)
def test_codes_of_several_scales_are_joined_as_onnxruntime_joins_them(
    kind: Any, tmp_path: Path
) -> None:
    random = np.random.default_rng(2)
    feeds = {"a": draw_codes(random, kind, 2, 3, 5), "b": draw_codes(random, kind, 2, 4, 5)}
    names = ["ys", "yz", "a", "as", "az", "b", "bs", "bz"]
    node = helper.make_node("QLinearConcat", names, ["y"], domain=MICROSOFT, axis=1)
    kinds = {"y": helper.np_dtype_to_tensor_dtype(np.dtype(kind))}
    compare_codes(save(tmp_path / "m.onnx", [node], feeds, parameters(kind), kinds), feeds)


@pytest.mark.parametrize(
    ("kind", "weights"), [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)]
)
@pytest.mark.parametrize("stored", ["one scale", "by column", "computed"])
def test_products_of_codes_are_onnxruntimes(
    kind: Any, weights: Any, stored: str, tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    count = (19,) if stored == "by column" else ()
    feeds = {"a": draw_codes(random, kind, 7, 37)}
    named = parameters(kind) | {"bs": scales(random, *count), "ys": np.float32(0.3)}
    named["bz"] = np.asarray(draw_codes(random, weights, *count))
    matrix = {"b": draw_codes(random, weights, 37, 19)}
    feeds, named = (feeds | matrix, named) if stored == "computed" else (feeds, named | matrix)
    names = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
    node = helper.make_node("QLinearMatMul", names, ["y"])
    kinds = {"y": helper.np_dtype_to_tensor_dtype(np.dtype(kind))}
    compare_codes(save(tmp_path / "m.onnx", [node], feeds, named, kinds), feeds, share=0.01)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("encoded", [False, True])
def test_gemm_of_codes_is_onnxruntimes(
    kind: Any, transposed: int, encoded: bool, tmp_path: Path
) -> None:
    random = np.random.default_rng(4)
    feeds = {"a": draw_codes(random, kind, 7, 37)}
    shape = (19, 37) if transposed else (37, 19)
    named = parameters(kind) | {
        "b": draw_codes(random, np.int8, *shape),
        "bz": np.int8(3),
        "c": random.integers(-9999, 9999, 19).astype(np.int32),
        "ys": np.float32(0.3),
    }
    names = ["a", "as", "az", "b", "bs", "bz", "c", *(["ys", "yz"] if encoded else [])]
    node = helper.make_node("QGemm", names, ["y"], domain=MICROSOFT, transB=transposed)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind)) if encoded else TensorProto.FLOAT
    path = save(tmp_path / "m.onnx", [node], feeds, named, {"y": element})
    if encoded:
        compare_codes(path, feeds, share=0.01)
        return
    ((found, wanted),) = run_both(path, feeds)
    assert distance(found, wanted) < 1e-6


@pytest.mark.parametrize(
    ("kind", "weights"), [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)]
)
@pytest.mark.parametrize("by_channel", [False, True])
def test_convolutions_of_codes_are_onnxruntimes(
    kind: Any, weights: Any, by_channel: bool, tmp_path: Path
) -> None:
    random = np.random.default_rng(5)
    feeds = {"a": draw_codes(random, kind, 1, 6, 9, 8)}
    count = (8,) if by_channel else ()
    named = parameters(kind) | {
        "b": draw_codes(random, weights, 8, 6, 3, 3),
        "bs": scales(random, *count),
        "bz": np.full(count, 0 if by_channel else 3, weights),
        "c": random.integers(-9999, 9999, 8).astype(np.int32),
        "ys": np.float32(0.8),
    }
    names = ["a", "as", "az", "b", "bs", "bz", "ys", "yz", "c"]
    node = helper.make_node("QLinearConv", names, ["y"], pads=[1] * 4, strides=[2, 1])
    kinds = {"y": helper.np_dtype_to_tensor_dtype(np.dtype(kind))}
    compare_codes(save(tmp_path / "m.onnx", [node], feeds, named, kinds), feeds, share=0.01)


@pytest.mark.parametrize(("channels", "groups"), [(64, 1), (6, 6)])
def test_integer_convolutions_are_exact(channels: int, groups: int, tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    feeds = {"a": draw_codes(random, np.uint8, 1, channels, 9, 8)}
    filters = draw_codes(random, np.uint8, 12, channels // groups, 3, 3)
    named: dict[str, Any] = {"b": filters, "az": np.uint8(120), "bz": np.uint8(3)}
    node = helper.make_node(
        "ConvInteger", ["a", "b", "az", "bz"], ["y"], pads=[1] * 4, group=groups
    )
    path = save(tmp_path / "m.onnx", [node], feeds, named, {"y": TensorProto.INT32})
    ((found, wanted),) = run_both(path, feeds)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("weights", CODES)
@pytest.mark.parametrize("stored", [False, True])
def test_integer_products_are_exact_with_any_zero_points(
    kind: Any, weights: Any, stored: bool, tmp_path: Path
) -> None:
    random = np.random.default_rng(7)
    left, right = draw_codes(random, kind, 5, 600), draw_codes(random, weights, 600, 9)
    # One per row and one per column, which onnxruntime has no kernel for.
    zeros = draw_codes(random, kind, 5), draw_codes(random, weights, 9)
    feeds = {"a": left} if stored else {"a": left, "b": right}
    named = {"az": zeros[0], "bz": zeros[1], **({"b": right} if stored else {})}
    node = helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"])
    path = save(tmp_path / "m.onnx", [node], feeds, named, {"y": TensorProto.INT32})
    wide = [each.astype(np.int64) for each in (left, right, *zeros)]
    wanted = (wide[0] - wide[2][:, None]) @ (wide[1] - wide[3])
    assert np.array_equal(run_natively(path, feeds)[0], wanted)


@pytest.mark.parametrize("weights", CODES)
@pytest.mark.parametrize("operator", ["DynamicQuantizeMatMul", "MatMulIntegerToFloat"])
def test_products_of_codes_with_a_float_result_are_onnxruntimes(
    operator: str, weights: Any, tmp_path: Path
) -> None:
    random = np.random.default_rng(8)
    named: dict[str, Any] = {
        "b": draw_codes(random, weights, 37, 19),
        "bs": scales(random, 19),
        "bz": draw_codes(random, weights, 19),
        "c": draw(random, 19),
    }
    if operator == "DynamicQuantizeMatMul":
        feeds, names = {"a": draw(random, 7, 37)}, ["a", "b", "bs", "bz", "c"]
    else:
        feeds = {"a": draw_codes(random, np.uint8, 7, 37)}
        named |= {"as": np.float32(0.02), "az": np.uint8(120)}
        names = ["a", "b", "as", "bs", "az", "bz", "c"]
    node = helper.make_node(operator, names, ["y"], domain=MICROSOFT)
    path = save(tmp_path / "m.onnx", [node], feeds, named, {"y": TensorProto.FLOAT})
    ((found, wanted),) = run_both(path, feeds)
    assert distance(found, wanted) < 1e-6


def product_of_blocks(
    shape: tuple[tuple[int, ...], int], stored: tuple[int, int, str], half: bool = False
) -> tuple[onnx.NodeProto, dict[str, Array], dict[str, Array]]:
    """Make a MatMulNBits: its node, feeds and constants; stored is bits, block and zero points."""
    (*lead, depth), columns = shape
    bits, block, zeros = stored
    random, kind = np.random.default_rng(9), np.float16 if half else np.float32
    blocks = -(-depth // block)
    named = {
        "b": draw_codes(random, np.uint8, columns, blocks, block * bits // 8),
        "s": (scales(random, columns, blocks) / 2**bits).astype(kind),
        "c": draw(random, columns).astype(kind),
    }
    if zeros == "packed":
        named["z"] = draw_codes(random, np.uint8, columns, -(-blocks * bits // 8))
    if zeros == "real":
        named["z"] = random.uniform(0, 2**bits, (columns, blocks)).astype(kind)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "b", "s", "z" if "z" in named else "", "", "c"],
        ["y"],
        domain=MICROSOFT,
        K=depth,
        N=columns,
        bits=bits,
        block_size=block,
    )
    return node, {"x": draw(random, *lead, depth).astype(kind)}, named


#: Shape of x and columns: one row, tails everywhere, K of no whole block, several leading axes.
PRODUCTS = (((1, 64), 48), ((1, 70), 33), ((5, 70), 33), ((2, 19, 96), 130), ((1, 1, 256), 260))
STORED = ((4, 16, ""), (4, 32, "packed"), (4, 64, "real"), (8, 32, "packed"), (8, 16, ""))


@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
@pytest.mark.parametrize("stored", [*STORED, (2, 16, "packed"), (2, 32, "")], ids=str)
def test_a_product_with_weights_in_blocks_is_onnxruntimes(
    shape: tuple[tuple[int, ...], int], stored: tuple[int, int, str], tmp_path: Path
) -> None:
    node, feeds, named = product_of_blocks(shape, stored)
    path = save(tmp_path / "m.onnx", [node], feeds, named, {"y": TensorProto.FLOAT})
    ((found, wanted),) = run_both(path, feeds)
    assert found.shape == wanted.shape
    assert distance(found, wanted) < 2e-6


def test_a_product_of_half_floats_with_weights_in_blocks_is_onnxruntimes(tmp_path: Path) -> None:
    node, feeds, named = product_of_blocks(((1, 64), 48), (4, 32, ""), half=True)
    path = save(tmp_path / "m.onnx", [node], feeds, named, {"y": TensorProto.FLOAT16})
    ((found, wanted),) = run_both(path, feeds)
    assert distance(found, wanted) < 1e-3


def test_weights_in_blocks_stay_packed_in_the_compiled_code(tmp_path: Path) -> None:
    node, feeds, named = product_of_blocks(((1, 256), 256), (4, 32, "packed"))
    path = save(tmp_path / "m.onnx", [node], feeds, named, {"y": TensorProto.FLOAT})
    stored = lift_constants(lower_natively(path)[0]).arrays
    # Half a byte per code, a float32 scale and a byte of zero point per block and column.
    assert sum(array.nbytes for array in stored) <= 256 * 256 // 2 + 8 * 256 * 5 + 256 * 4


NARROW = (ml_dtypes.int4, ml_dtypes.uint4, np.int8, np.uint8, ml_dtypes.int2)


@pytest.mark.parametrize("kind", NARROW, ids=lambda kind: np.dtype(kind).name)
@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize(
    ("axis", "block", "turned"), [(0, 32, False), (1, 8, False), (1, 32, True), (1, 0, False)]
)
def test_a_product_with_decoded_blocks_is_onnxruntimes(
    kind: Any, rows: int, axis: int, block: int, turned: bool, tmp_path: Path
) -> None:
    random = np.random.default_rng(10)
    feeds = {"x": draw(random, rows, 96)}
    shape = [40, 96] if turned else [96, 40]
    groups = list(shape) if block else [40]
    if block:
        groups[axis] //= block
    named = {
        "w": draw_codes(random, kind, *shape),
        "s": scales(random, *groups),
        "z": draw_codes(random, kind, *groups),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=axis, block_size=block),
        helper.make_node("Gemm", ["x", "d"], ["y"], transB=int(turned)),
    ]
    opset = 25 if kind is ml_dtypes.int2 else 21
    kinds = {"y": TensorProto.FLOAT}
    path = save(tmp_path / "m.onnx", nodes, feeds, named, kinds, opset=opset)
    ((found, wanted),) = run_both(path, feeds)
    assert distance(found, wanted) < 2e-6


@pytest.mark.parametrize("kind", [ml_dtypes.int4, ml_dtypes.uint4])
@pytest.mark.parametrize("block", [0, 8])
def test_numbers_are_encoded_to_four_bits_and_decoded_as_onnxruntime_does(
    kind: Any, block: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(11)
    feeds = {"x": 0.08 * draw(random, 5, 24)}
    groups = (5, 3) if block else (24,)
    named = {"s": scales(random, *groups), "z": draw_codes(random, kind, *groups)}
    options: dict[str, Any] = {"axis": 1, "block_size": block}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **options),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **options),
    ]
    path = save(tmp_path / "m.onnx", nodes, feeds, named, {"y": TensorProto.FLOAT})
    ((found, wanted),) = run_both(path, feeds)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize(
    ("kind", "bits"), [(ml_dtypes.int4, 4), (ml_dtypes.uint4, 4), (np.uint8, 4), (np.uint8, 8)]
)
@pytest.mark.parametrize("zeros", [False, True])
def test_rows_of_a_table_in_blocks_are_onnxruntimes(
    kind: Any, bits: int, zeros: bool, tmp_path: Path
) -> None:
    random = np.random.default_rng(12)
    feeds = {"i": np.array([[0, 5, -1], [3, 3, 19]], np.int64)}
    packs = bits if kind is np.uint8 else 8
    named = {"w": draw_codes(random, kind, 20, 48 * packs // 8), "s": scales(random, 20, 3)}
    if zeros:
        named["z"] = draw_codes(random, kind, 20, -(-3 * packs // 8))
    node = helper.make_node(
        "GatherBlockQuantized",
        ["w", "i", "s", *(["z"] if zeros else [])],
        ["y"],
        domain=MICROSOFT,
        block_size=16,
        quantize_axis=1,
        gather_axis=0,
        bits=bits,
    )
    path = save(tmp_path / "m.onnx", [node], feeds, named, {"y": TensorProto.FLOAT})
    ((found, wanted),) = run_both(path, feeds)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("by_row", [False, True])
def test_an_lstm_with_stored_codes_is_the_one_that_they_mean(
    kind: Any, directions: int, by_row: bool, tmp_path: Path
) -> None:
    random, hidden = np.random.default_rng(13), 20
    names = ["x", "w", "r", "b", "", "h", "c", "", "ws", "wz", "rs", "rz"]
    count = (directions, 4 * hidden) if by_row else (directions,)
    zero = np.full(count, 128 if kind is np.uint8 else 0, kind)
    codes = {"w": draw_codes(random, kind, directions, 12, 4 * hidden)}
    codes["r"] = draw_codes(random, kind, directions, hidden, 4 * hidden)
    factors = {"ws": 0.1 * scales(random, *count), "rs": 0.1 * scales(random, *count)}
    bias = {"b": 0.1 * draw(random, directions, 8 * hidden)}
    feeds = {"x": draw(random, 7, 2, 12), "h": 0.1 * draw(random, directions, 2, hidden)}
    feeds["c"] = 0.1 * draw(random, directions, 2, hidden)
    direction = "bidirectional" if directions == 2 else "forward"
    options: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    results = dict.fromkeys(("y", "yh", "yc"), TensorProto.FLOAT)
    node = helper.make_node(
        "DynamicQuantizeLSTM", names, list(results), domain=MICROSOFT, **options
    )
    stored = {**codes, **factors, **bias, "wz": zero, "rz": zero}
    path = save(tmp_path / "q.onnx", [node], feeds, stored, results)

    def decoded(name: str) -> Array:
        steps = codes[name].astype(np.float32) - zero.astype(np.float32).reshape(directions, 1, -1)
        real = steps * factors[name + "s"].reshape(directions, 1, -1)
        return np.ascontiguousarray(real.transpose(0, 2, 1), np.float32)

    plain = helper.make_node("LSTM", names[:7], list(results), **options)
    stored = {"w": decoded("w"), "r": decoded("r"), **bias}
    meant = run_model(save(tmp_path / "f.onnx", [plain], feeds, stored, results), feeds)
    for (found, wanted), exact in zip(run_both(path, feeds), meant, strict=True):
        assert distance(found, exact) < 2e-6
        # onnxruntime rounds the states to codes at every step.
        assert distance(found, wanted) < 2e-2


@pytest.mark.parametrize("stored", [(4, 32, "packed"), (4, 16, ""), (8, 32, "packed")], ids=str)
@pytest.mark.parametrize("shape", [((1, 160), 70), ((9, 160), 70)], ids=str)
def test_64_bit_arm_decodes_weights_in_blocks_to_the_same_numbers(
    shape: tuple[tuple[int, ...], int], stored: tuple[int, int, str], tmp_path: Path
) -> None:
    node, feeds, named = product_of_blocks(shape, stored)
    path = save(tmp_path / "m.onnx", [node], feeds, named, {"y": TensorProto.FLOAT})
    model = onnx.load(path)
    rows, columns = (*shape[0][:-1], shape[1]), model.graph.output[0].type.tensor_type
    columns.shape.CopyFrom(helper.make_tensor_type_proto(1, rows).tensor_type.shape)
    onnx.save(model, path)
    target = make_target("aarch64", static=True)
    bundle = compile_model(
        describe(path), target, directory=tmp_path / "bundle", cache=cache_folder()
    )
    found, _ = run_program(bundle, feeds, tmp_path)
    assert bundle.unscheduled == ()
    assert distance(found, run_model(path, feeds, optimize=False)[0]) < 2e-6
