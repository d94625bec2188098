"""Kernels against numpy and onnxruntime, on this machine."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from tvm import s_tir, te, tirx

from edgeopt.compile.cpu import describe_cpu
from edgeopt.compile.kernels import columns, rows, tile
from edgeopt.compile.kernels.rule import Refusal, schedule_function, sorted_functions
from edgeopt.compile.kernels.scheduling import extent
from edgeopt.compile.views import Reshape, matching_groups
from edgeopt.compile.workspace import planned_workspace
from edgeopt.model.oracle import run_model
from tests.compile.kit import (
    Array,
    Graph,
    distance,
    lower_natively,
    make_target,
    run_natively,
    store_product,
)

pytestmark = pytest.mark.host

SEEDS = (0, 1, 2)
METHODS = ("float32", "float16", "int8-weights", "int8-dynamic", "int8-static")
#: (leading axes, K, N): one row, tails in rows and columns, odd K, several leading axes.
SHAPES = (
    ((1,), 64, 48),
    ((7,), 36, 20),
    ((1, 33), 65, 17),
    ((2, 3, 5), 24, 40),
    ((2, 40), 72, 40),
    ((64,), 96, 6),
)


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_equals_onnxruntimes_however_its_weight_is_stored(
    method: str, shape: tuple[tuple[int, ...], int, int], tmp_path: Path
) -> None:
    leading, depth, outputs = shape
    graph = Graph()
    x = graph.input("x", (*leading, depth))
    graph.output(store_product(graph, x, draw(3, depth, outputs), method), (*leading, outputs))
    path = graph.save(tmp_path / "m.onnx")
    for seed in SEEDS:
        feeds = {"x": draw(seed, *leading, depth)}
        assert distance(run_natively(path, feeds)[0], run_model(path, feeds)[0]) < 2e-6


@pytest.mark.parametrize("method", ["float32", "float16", "int8-weights"])
@pytest.mark.parametrize("count", [1, 40])
def test_a_panel_is_widened_once_where_several_tiles_of_rows_read_it(
    method: str, count: int, tmp_path: Path
) -> None:
    graph = Graph()
    x = graph.input("x", (count, 512))
    graph.output(store_product(graph, x, draw(3, 512, 64), method), (count, 64))
    module, _ = lower_natively(graph.save(tmp_path / "m.onnx"))
    buffered = 'T.sblock("widened")' in module.script(show_meta=False)
    assert buffered == (count > 1 and method != "float32")
    # Each thread has a panel of its own; accumulators are none of the runtime's business.
    _, width = tile.choose_tile(describe_cpu(make_target("x86_64")), count, 64)
    for threads in (1, 2):
        assert planned_workspace(module, threads) == threads * buffered * 512 * width * 4


def test_one_row_that_is_broadcast_afterwards_is_computed_once(tmp_path: Path) -> None:
    graph = Graph()
    x, y = graph.input("x", (1, 64)), graph.input("y", (40, 48))
    gate = graph.add("MatMul", x, graph.weight(64, 48))
    graph.output(graph.add("Mul", y, gate), (40, 48))
    path = graph.save(tmp_path / "m.onnx")
    module, _ = lower_natively(path)
    product = next(f for v, f in sorted_functions(module) if "gemm" in v.name_hint)
    sch = s_tir.Schedule(product)
    loops = sch.get_loops(sch.get_sblock("product_update"))
    assert np.prod([extent(sch, loop) for loop in loops]) == 64 * 48
    feeds = {"x": draw(0, 1, 64), "y": draw(1, 40, 48)}
    assert distance(run_natively(path, feeds)[0], run_model(path, feeds)[0]) < 2e-6


@pytest.mark.parametrize("zero", [0, 100, 255])
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_integer_sums_are_exact(kind: type, zero: int, tmp_path: Path) -> None:
    random = np.random.default_rng(zero)
    zero_point: Array = np.array(zero).astype(kind)
    codes: Array = random.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, (9, 70)).astype(kind)
    weight = random.integers(-127, 128, (70, 33)).astype(np.int8)
    graph = Graph()
    element = TensorProto.UINT8 if kind is np.uint8 else TensorProto.INT8
    x = graph.input("x", codes.shape, element)
    product = graph.add("MatMulInteger", x, graph.constant(weight), graph.constant(zero_point))
    graph.output(product, (9, 33), TensorProto.INT32)
    path = graph.save(tmp_path / "m.onnx")
    wanted = (codes.astype(np.int64) - int(zero_point)) @ weight.astype(np.int64)
    assert np.array_equal(run_natively(path, {"x": codes})[0], wanted)


def test_dynamic_codes_are_onnxruntimes_even_for_zeros_and_ties(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (4, 64))
    codes, scale, zero = graph.add("DynamicQuantizeLinear", x, outputs=3)
    graph.output(codes, (4, 64), TensorProto.UINT8)
    graph.output(scale, ())
    graph.output(zero, (), TensorProto.UINT8)
    path = graph.save(tmp_path / "m.onnx")
    ties = np.linspace(0, 255, 256, dtype=np.float32).reshape(4, 64)
    ties[1:] += 0.5
    ties[3, -1] = 255
    for value in (*(draw(seed, 4, 64) for seed in SEEDS), np.zeros((4, 64), np.float32), ties):
        found, wanted = run_natively(path, {"x": value}), run_model(path, {"x": value})
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


UNARY = {"Exp": 3e-7, "Erf": 3e-7, "Tanh": 5e-7, "Sigmoid": 3e-7, "Round": 0.0}


@pytest.mark.parametrize("operator", UNARY)
def test_polynomials_are_close_everywhere(operator: str, tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (1, 4096))
    graph.output(graph.add(operator, x), (1, 4096))
    path = graph.save(tmp_path / "m.onnx")
    spread = np.concatenate([np.linspace(-30, 30, 4064), np.linspace(-2e-3, 2e-3, 32)])
    feeds = {"x": spread.astype(np.float32)[None]}
    found, wanted = run_natively(path, feeds)[0], run_model(path, feeds)[0]
    limit = UNARY[operator]
    relative = operator in ("Exp", "Tanh")
    scale = np.maximum(np.abs(wanted), 1e-30) if relative else 1.0
    assert (np.abs(found - wanted) / scale).max() <= limit


@pytest.mark.parametrize("length", [3, 32, 33, 128, 200])
@pytest.mark.parametrize("operator", ["Softmax", "LayerNormalization", "ReduceMean", "ReduceMax"])
def test_row_kernels_take_any_length(operator: str, length: int, tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (2, 5, length))
    shape = (2, 5, length)
    if operator == "LayerNormalization":
        result = graph.add(operator, x, graph.weight(length), graph.weight(length))
    elif operator == "Softmax":
        result = graph.add(operator, x)
    else:
        result = graph.add(operator, x, graph.constant(np.array([-1])))
        shape = (2, 5, 1)
    graph.output(result, shape)
    path = graph.save(tmp_path / "m.onnx")
    for seed in SEEDS:
        feeds = {"x": 3 * draw(seed, 2, 5, length)}
        assert distance(run_natively(path, feeds)[0], run_model(path, feeds)[0]) < 2e-6


#: Inputs, outputs, groups, kernel, stride, pads (one number all around), height and width.
CONVOLUTIONS = (
    (3, 16, 1, 3, 2, 1, 24, 20),
    (16, 24, 1, 1, 1, 0, 7, 9),
    (8, 12, 1, 1, 2, 0, 8, 8),
    (5, 7, 1, 5, 1, 2, 9, 11),
    (24, 24, 24, 3, 1, 1, 14, 10),
    (20, 20, 20, 5, 2, 2, 13, 13),
    (3, 3, 3, 3, 1, 1, 6, 6),
)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions_equal_onnxruntimes(case: tuple[int, ...], tmp_path: Path) -> None:
    inputs, outputs, groups, kernel, stride, pad, height, width = case
    graph = Graph()
    x = graph.input("x", (1, inputs, height, width))
    filters = graph.weight(outputs, inputs // groups, kernel, kernel)
    result = graph.add(
        "Conv",
        x,
        filters,
        graph.weight(outputs),
        group=groups,
        pads=[pad] * 4,
        strides=[stride] * 2,
        kernel_shape=[kernel] * 2,
    )
    result = graph.add("HardSwish", result)
    across = tuple((size + 2 * pad - kernel) // stride + 1 for size in (height, width))
    graph.output(result, (1, outputs, *across))
    path = graph.save(tmp_path / "m.onnx")
    for seed in SEEDS:
        feeds = {"x": draw(seed, 1, inputs, height, width)}
        assert distance(run_natively(path, feeds)[0], run_model(path, feeds)[0]) < 2e-6


def test_a_small_vision_network_keeps_its_channels_last_between_convolutions(
    tmp_path: Path,
) -> None:
    graph = Graph()
    x = graph.input("x", (1, 3, 16, 16))
    x = graph.add("Conv", x, graph.weight(16, 3, 3, 3), graph.weight(16), pads=[1] * 4)
    x = graph.add("MaxPool", graph.add("Relu", x), kernel_shape=[3, 3], strides=[2, 2])
    x = graph.add("AveragePool", x, kernel_shape=[2, 2])
    gate = graph.add("GlobalAveragePool", x)
    gate = graph.add("HardSigmoid", graph.add("Conv", gate, graph.weight(16, 16, 1, 1)))
    x = graph.add("Mul", x, gate)
    x = graph.add("Clip", x, graph.constant(np.float32(-1)), graph.constant(np.float32(1)))
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    graph.output(graph.add("Gemm", x, graph.weight(16, 4), graph.weight(4)), (1, 4))
    path = graph.save(tmp_path / "m.onnx")
    for seed in SEEDS:
        feeds = {"x": draw(seed, 1, 3, 16, 16)}
        assert distance(run_natively(path, feeds)[0], run_model(path, feeds)[0]) < 2e-6
    module, _ = lower_natively(path)
    names = [variable.name_hint for variable in module.functions]
    # Not even of the input: an image of few channels is read from where it is.
    assert not any("transpose" in name for name in names)


def test_row_numbers_outside_the_table_never_read_other_memory(tmp_path: Path) -> None:
    graph = Graph()
    table = draw(0, 10, 8)
    ids = graph.input("ids", (6,), TensorProto.INT64)
    graph.output(graph.add("Gather", graph.constant(table), ids, axis=0), (6, 8))
    path = graph.save(tmp_path / "m.onnx")
    numbers = np.array([0, 9, -1, -10, 10**6, -(10**6)])
    found = run_natively(path, {"ids": numbers})[0]
    assert np.array_equal(found, table[[0, 9, 9, 0, 9, 0]])


def test_what_scatters_has_no_rule_and_says_so(tmp_path: Path) -> None:
    graph = Graph()
    x, at = graph.input("x", (4, 8)), graph.input("at", (4, 2), TensorProto.INT64)
    values = graph.input("values", (4, 2))
    graph.output(graph.add("ScatterElements", x, at, values, axis=1), (4, 8))
    _, refusals = lower_natively(graph.save(tmp_path / "m.onnx"))
    assert [refusal.reason for refusal in refusals] == ["it is one opaque block"]


def test_a_rule_that_fails_is_a_refusal_and_never_silence() -> None:
    cpu = describe_cpu(make_target("x86_64"))
    x = te.placeholder((4, 64), "float32")
    softmax = te.create_prim_func([x, rows.define_softmax(cpu, (4, 64))(x)])
    assert not isinstance(schedule_function(softmax, cpu, "f"), Refusal)
    k = te.reduce_axis((0, 64))
    marks = {"edgeopt.kind": columns.KIND}  # whose rule needs two axes
    total = te.compute((4,), lambda i: te.sum(x[i, k], axis=k), attrs=marks)
    copied = te.compute((4,), lambda i: total[i])
    refusal = schedule_function(te.create_prim_func([x, copied]), cpu, "g")
    assert isinstance(refusal, Refusal)
    assert refusal.reason


@given(st.integers(1, 200), st.integers(1, 2000))
@settings(max_examples=50, deadline=None)
def test_a_tile_fits_the_registers_and_the_matrix(height: int, width: int) -> None:
    for machine in ("x86_64", "aarch64", "arm"):
        cpu = describe_cpu(make_target(machine))
        tall, wide = tile.choose_tile(cpu, height, width)
        assert 1 <= tall <= height
        assert wide % cpu.lanes == 0
        assert wide < width + cpu.lanes or wide <= 8 * cpu.lanes
        assert tall == 1 or tall * wide // cpu.lanes < cpu.registers


@pytest.mark.parametrize(
    ("before", "after"), [((1, 6, 8), (6, 2, 4)), ((4, 6), (2, 12)), ((2, 3, 1), (6,))]
)
def test_a_reshape_reads_the_element_that_numpy_reads(
    before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    flat = np.arange(np.prod(before)).reshape(before)
    for place in np.ndindex(*after):
        index = Reshape(before, after).source([tirx.const(i, "int32") for i in place])
        assert flat[tuple(int(i) for i in index)] == flat.reshape(after)[place]
    sizes = [
        (np.prod([before[i] for i in left]), np.prod([after[i] for i in right]))
        for left, right in matching_groups(before, after)
    ]
    assert all(left == right for left, right in sizes)


@pytest.mark.parametrize("size", [(112, 96), (150, 97)], ids=["whole", "ragged"])
@pytest.mark.parametrize("joined", [True, False], ids=["lines", "pixels"])
def test_planes_are_put_side_by_side_as_vectors(
    joined: bool, size: tuple[int, int], tmp_path: Path
) -> None:
    height, width = size
    graph = Graph()
    limits = graph.constant(np.float32(0.02)), graph.constant(np.int8(3))
    x = graph.add("QuantizeLinear", graph.input("x", (1, 3, height, width)), *limits)
    x = graph.add("Transpose", x, perm=[0, 2, 3, 1])
    shape = (1, height, 3 * width) if joined else (1, height, width, 3)
    if joined:
        x = graph.add("Reshape", x, graph.constant(np.array(shape, np.int64)))
    graph.output(x, shape, TensorProto.INT8)
    path = graph.save(tmp_path / "m.onnx")
    feeds = {"x": draw(0, 1, 3, height, width)}
    assert np.array_equal(run_natively(path, feeds)[0], run_model(path, feeds)[0])
    module, _ = lower_natively(path)
    (function,) = (f for v, f in sorted_functions(module) if "transpose" in v.name_hint)
    assert "//" not in function.script(show_meta=False)
