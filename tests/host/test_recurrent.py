"""LSTM, GRU and RNN as compiled loops, against onnxruntime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from onnx import TensorProto, helper
from tvm import relax

from edgeopt.compile.build import build_executable, plan_module
from edgeopt.compile.cpu import describe_cpu
from edgeopt.compile.kernels.recurrent import Recurrent, choose_tiling
from edgeopt.compile.kernels.recurrent_cells import DEFAULTS, Activation
from edgeopt.compile.kernels.rule import sorted_functions
from edgeopt.errors import OperatorUnsupported
from edgeopt.model.oracle import run_model
from tests.compile.kit import Array, Graph, distance, lower_natively, make_target, run_natively

pytestmark = pytest.mark.host

SEEDS = (0, 1, 2)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def store(graph: Graph, values: Array, method: str) -> str:
    """Store a weight [D, rows, K] as one method of compression writes it."""
    if method == "float32":
        return graph.constant(values)
    if method == "float16":
        return str(
            graph.add("Cast", graph.constant(values.astype(np.float16)), to=TensorProto.FLOAT)
        )
    scales = (np.abs(values).max(axis=(0, 2)) / 127).astype(np.float32)
    codes = np.rint(values / scales[None, :, None]).astype(np.int8)
    zeros = graph.constant(np.zeros(len(scales), np.int8))
    stored = (graph.constant(codes), graph.constant(scales), zeros)
    return str(graph.add("DequantizeLinear", *stored, axis=1))


def save_layer(
    folder: Path,
    cell: str,
    *,
    size: tuple[int, int, int, int] = (5, 3, 6, 7),
    direction: str = "forward",
    states: bool = False,
    lengths: Sequence[int] = (),
    peepholes: bool = False,
    method: str = "float32",
    **attributes: Any,
) -> Path:
    """Write one layer of (steps, batch, inputs, hidden) whose outputs are all the model's."""
    steps, batch, inputs, hidden = size
    total = 2 if direction == "bidirectional" else 1
    rows = GATES[cell] * hidden
    graph = Graph(3)
    names = [
        graph.input("x", (steps, batch, inputs)),
        store(graph, 0.4 * draw(10, total, rows, inputs), method),
        store(graph, 0.4 * draw(11, total, rows, hidden), method),
        graph.constant(draw(12, total, 2 * rows)),
        graph.constant(np.array(lengths, np.int32)) if lengths else "",
    ]
    given = ("h", "c")[: 2 if cell == "LSTM" else 1]
    names += [graph.input(name, (total, batch, hidden)) if states else "" for name in given]
    if peepholes:
        names.append(graph.constant(draw(13, total, 3 * hidden)))
    while not names[-1]:
        names.pop()
    outputs = graph.add(
        cell,
        *names,
        outputs=1 + len(given),
        hidden_size=hidden,
        direction=direction,
        **attributes,
    )
    graph.output(outputs[0], (steps, total, batch, hidden))
    for output in outputs[1:]:
        graph.output(output, (total, batch, hidden))
    return graph.save(folder / "m.onnx")


def check(path: Path, *, limit: float = 2e-6) -> None:
    """Compile once and compare all outputs on three seeds."""
    cpu = describe_cpu(make_target("x86_64"))
    module, refusals = lower_natively(path, cpu)
    assert refusals == ()
    machine = relax.VirtualMachine(build_executable(plan_module(module, cpu), cpu), tvm.cpu())
    for seed in SEEDS:
        feeds = {
            each.name: draw(
                seed + place, *[dim.dim_value for dim in each.type.tensor_type.shape.dim]
            )
            for place, each in enumerate(onnx.load(path).graph.input)
        }
        result = machine["main"](*(tvm.runtime.tensor(value) for value in feeds.values()))
        outputs = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        found, wanted = [each.numpy() for each in outputs], run_model(path, feeds)
        assert len(found) == len(wanted)
        for mine, theirs in zip(found, wanted, strict=True):
            assert distance(mine, theirs) < limit


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize(
    ("direction", "states"), [("forward", False), ("reverse", True), ("bidirectional", True)]
)
def test_a_layer_equals_onnxruntimes_in_every_direction(
    cell: str, direction: str, states: bool, tmp_path: Path
) -> None:
    check(save_layer(tmp_path, cell, direction=direction, states=states))


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("size", [(1, 1, 3, 1), (4, 1, 5, 64), (2, 11, 4, 13)], ids=str)
def test_one_step_one_row_and_odd_sizes_are_right(
    cell: str, size: tuple[int, int, int, int], tmp_path: Path
) -> None:
    check(save_layer(tmp_path, cell, size=size))


@pytest.mark.parametrize("cell", GATES)
def test_rows_end_at_their_own_lengths(cell: str, tmp_path: Path) -> None:
    check(save_layer(tmp_path, cell, direction="bidirectional", lengths=(5, 1, 3), states=True))


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("LSTM", {"peepholes": True, "clip": 0.3}),
        ("LSTM", {"input_forget": 1}),
        ("GRU", {"linear_before_reset": 1, "direction": "bidirectional"}),
        ("GRU", {"clip": 0.3}),
        ("RNN", {"activations": ["Relu", "Tanh"], "direction": "bidirectional"}),
    ],
    ids=str,
)
def test_the_variants_of_a_cell_are_onnxruntimes(
    cell: str, options: dict[str, Any], tmp_path: Path
) -> None:
    check(save_layer(tmp_path, cell, **options))


@pytest.mark.parametrize("method", ["float16", "int8-weights"])
@pytest.mark.parametrize("cell", GATES)
def test_stored_weights_stay_stored_and_are_widened_in_the_loop(
    cell: str, method: str, tmp_path: Path
) -> None:
    path = save_layer(tmp_path, cell, size=(3, 2, 20, 64), method=method)
    # Wide sums reach far into tanh: both sides are up to 2e-6 from what float64 gives.
    check(path, limit=4e-6)
    module, _ = lower_natively(path)
    loop = next(f for v, f in sorted_functions(module) if v.name_hint == cell.lower())
    dtype = {"float16": "float16", "int8-weights": "int8"}[method]
    text = loop.script(show_meta=False)
    assert f'"{dtype}"' in text.partition(":\n")[0]


@pytest.mark.parametrize("name", ["HardSigmoid", "LeakyRelu", "Elu", "Softsign", "ThresholdedRelu"])
def test_functions_take_their_parameters_in_order(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"activations": [name, "Tanh"], "activation_alpha": [0.3]}
    if name == "Softsign":
        del options["activation_alpha"]
    if name == "HardSigmoid":
        options["activation_beta"] = [0.4]
    check(save_layer(tmp_path, "GRU", **options))


def test_a_long_sequence_is_one_loop(tmp_path: Path) -> None:
    path = save_layer(tmp_path, "LSTM", size=(500, 1, 4, 8))
    module, refusals = lower_natively(path)
    assert refusals == ()
    assert len(sorted_functions(module)) < 5
    check(path)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_all_outputs_of_many_layers_may_be_joined_in_one(direction: str, tmp_path: Path) -> None:
    graph = Graph(3)
    x, flat = graph.input("x", (4, 1, 6)), graph.constant(np.array([1, -1]))
    total, hidden, parts, width = 2 if direction == "bidirectional" else 1, 7, [], 0
    for place, cell in enumerate(["LSTM", "GRU", "RNN"] * 3):
        rows = GATES[cell] * hidden
        weights = [
            graph.constant(0.4 * draw(10 * place + i, total, rows, size))
            for i, size in enumerate((6, hidden))
        ]
        count = 3 if cell == "LSTM" else 2
        made = graph.add(cell, x, *weights, outputs=count, hidden_size=hidden, direction=direction)
        parts += [graph.add("Reshape", each, flat) for each in made]
        width += (4 + count - 1) * total * hidden
    graph.output(graph.add("Relu", graph.add("Concat", *parts, axis=1)), (1, width))
    check(graph.save(tmp_path / "m.onnx"))


def test_weights_that_are_inputs_are_refused_with_the_reason(tmp_path: Path) -> None:
    graph = Graph()
    names = [
        graph.input("x", (2, 1, 3)),
        graph.input("w", (1, 4, 3)),
        graph.input("r", (1, 4, 4)),
    ]
    graph.output(graph.add("RNN", *names, hidden_size=4), (2, 1, 1, 4))
    with pytest.raises(OperatorUnsupported, match="not constant"):
        lower_natively(graph.save(tmp_path / "m.onnx"))


def test_batch_first_is_the_same_layer_with_its_axes_moved(tmp_path: Path) -> None:
    path = save_layer(tmp_path, "LSTM", direction="bidirectional")
    x = draw(0, 5, 3, 6)
    wanted = run_model(path, {"x": x})
    model = onnx.load(path)
    (node,) = model.graph.node
    node.attribute.append(helper.make_attribute("layout", 1))
    shapes = ((3, 5, 6), (3, 5, 2, 7), (3, 2, 7), (3, 2, 7))
    for value, shape in zip([*model.graph.input, *model.graph.output], shapes, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dim.dim_value = size
    onnx.save(model, path)
    found = run_natively(path, {"x": np.ascontiguousarray(x.transpose(1, 0, 2))})
    assert distance(found[0], wanted[0].transpose(2, 0, 1, 3)) < 2e-6
    for mine, theirs in zip(found[1:], wanted[1:], strict=True):
        assert distance(mine, theirs.transpose(1, 0, 2)) < 2e-6


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "arm"])
def test_a_tile_leaves_registers_for_the_weights(machine: str) -> None:
    cpu = describe_cpu(make_target(machine))
    usual = (Activation("sigmoid"), Activation("tanh"), Activation("tanh"))
    assert {each.name for each in usual} <= set(DEFAULTS)
    for batch, hidden in ((1, 128), (5, 7), (64, 200)):
        layer = Recurrent(
            cell="LSTM", steps=9, batch=batch, hidden=hidden, reverse=(False,), activations=(usual,)
        )
        tiling = choose_tiling(cpu, layer)
        assert tiling.rows * tiling.vectors * 4 < cpu.registers
        assert tiling.width >= hidden
        assert tiling.part * tiling.parts >= batch
