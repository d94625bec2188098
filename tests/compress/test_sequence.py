"""Layers that are fitted one after the other make up for what those before them have lost."""

import gc
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.factors import inverse_factor
from edgeopt.compress.learned import Learned
from edgeopt.compress.plan import rewrite_weights
from edgeopt.compress.reconstruct import round_blocks
from edgeopt.compress.sequence import fit_in_turn
from edgeopt.compress.surgeon import damped
from edgeopt.errors import ConfigError
from edgeopt.model.graph import infer_types, initializers, weights
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_reconstruct import decoded
from tests.compress.test_refit import draw
from tests.graphs import describe, normal, save_graph, text_model

DEEP = """
deep (float[4,32] x) => (float[4,8] y) {
    a = MatMul(x, one)
    b = Relu(a)
    c = Gemm<transB=1>(b, two, bias)
    d = Relu(c)
    y = MatMul(d, three)
}"""


def deep(folder: Path) -> Model:
    stored: dict[str, Array] = {
        "one": normal(0, 32, 64) / 5,
        "two": normal(1, 64, 64) / 8,
        "bias": normal(3, 64),
        "three": normal(2, 64, 8) / 8,
    }
    return describe(save_graph(folder / "deep.onnx", DEEP, stored))


def plan(names: Sequence[str], *, in_turn: bool) -> Plan:
    choices = [
        Choice(weight=name, method="int2-blocks", block=32, reconstruct=True) for name in names
    ]
    return Plan(name="mixed", choices=tuple(choices), in_turn=in_turn)


def lost(model: Model, made: Model) -> float:
    feeds = draw(model, 200, 5)
    old, new = run_samples(model, feeds)[0], run_samples(made, feeds)[0]
    return float(np.square(old - new).sum() / np.square(old).sum())


def test_errors_of_layers_no_longer_add_up_on_samples_that_nothing_was_fitted_to(
    tmp_path: Path,
) -> None:
    model, fitted = deep(tmp_path), None
    fitted = draw(model, 128, 1)
    names = ("one", "two", "three")
    found = [
        lost(model, apply_plan(model, plan(names, in_turn=each), directory=tmp_path / str(each),
                               samples=fitted))
        for each in (False, True)
    ]  # fmt: skip
    assert found[1] < 0.7 * found[0]


def test_the_second_layer_is_that_of_least_squares_rounded_for_what_it_is_given(
    tmp_path: Path,
) -> None:
    model = deep(tmp_path)
    samples = draw(model, 96, 1)
    made = apply_plan(
        model, plan(("one", "two"), in_turn=True), directory=tmp_path / "out", samples=samples
    )
    stored = initializers(onnx.load(model.path).graph)
    one, two = (numpy_helper.to_array(stored[name]) for name in ("one", "two"))
    codes = initializers(onnx.load(made.path).graph)

    def rows_of(name: str) -> Array:
        whole = numpy_helper.to_array(codes[f"{name}.int2"]).astype(np.float32)
        scales = numpy_helper.to_array(codes[f"{name}.scale.half"]).astype(np.float32)
        return decoded(whole, scales) if name == "two" else decoded(whole.T, scales.T).T

    x = samples["x"].reshape(-1, 32)
    before, after = np.maximum(x @ one, 0), np.maximum(x @ rows_of("one"), 0)
    moment = after.T.astype(np.float64) @ after
    held = damped(moment)
    ridge = (held - moment)[0, 0]
    fitted = np.linalg.solve(held, after.T @ (before @ two.T) + ridge * two.T).T
    wanted = round_blocks(fitted.astype(np.float32), inverse_factor(moment), block=32, bits=2)
    found = numpy_helper.to_array(codes["two.int2"]).astype(np.int8)
    # What float32 rounds otherwise, next to a tie, moves the codes after it.
    assert np.count_nonzero(found != wanted.codes) < 0.02 * found.size
    factor = inverse_factor(before.T.astype(np.float64) @ before)
    plain = round_blocks(two, factor, block=32, bits=2)
    assert np.count_nonzero(found != plain.codes) > 0.1 * found.size


def test_the_first_layer_is_rounded_as_without(tmp_path: Path) -> None:
    model = deep(tmp_path)
    samples = draw(model, 64, 1)
    made = [
        apply_plan(
            model, plan(("one",), in_turn=each), directory=tmp_path / str(each), samples=samples
        )
        for each in (False, True)
    ]
    first, second = (
        numpy_helper.to_array(initializers(onnx.load(each.path).graph)["one.int2"]) for each in made
    )
    assert np.count_nonzero(first != second) < 0.02 * first.size


def test_a_plan_in_turn_replays_to_the_same_bytes_and_needs_samples(tmp_path: Path) -> None:
    model = deep(tmp_path)
    samples, asked = draw(model, 40, 1), plan(("one", "two", "three"), in_turn=True)
    one, two = (
        apply_plan(model, asked, directory=tmp_path / each, samples=samples) for each in "ab"
    )
    assert one.sha256 == two.sha256
    onnx.checker.check_model(onnx.load(one.path), full_check=True)
    with pytest.raises(ConfigError, match="calibration samples"):
        apply_plan(model, asked, directory=tmp_path / "none")


@pytest.mark.parametrize("rank", [None, 16])
def test_forms_of_all_kinds_go_together(rank: int | None, tmp_path: Path) -> None:
    model = text_model(tmp_path)
    choices = (
        Choice(weight="table", method="codebook-rows", group=8, rows=300, reconstruct=True),
        Choice(weight="mix", method="int4-blocks", block=16, rank=rank, reconstruct=True),
    )
    random = np.random.default_rng(0)
    ids = random.integers(0, 500, (64, 1, 8))
    samples = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    old = run_samples(model, samples)[0]
    errors = []
    for in_turn in (False, True):
        asked = Plan(name="mixed", choices=choices, in_turn=in_turn)
        made = apply_plan(model, asked, directory=tmp_path / "out", samples=samples)
        errors.append(float(np.square(run_samples(made, samples)[0] - old).sum()))
    # Rows and columns of random numbers: what is lost here no fitting brings back.
    assert 0 < errors[1] < 1.1 * errors[0]


def test_what_layers_give_is_never_held_for_all_of_them_at_once(tmp_path: Path) -> None:
    depth, width, count = 12, 64, 256
    nodes = "".join(f"  h{at + 1} = MatMul(h{at}, w{at})\n" for at in range(depth))
    text = f"long (float[4,{width}] h0) => (float[4,{width}] h{depth}) {{\n{nodes}}}"
    stored = {f"w{at}": normal(at, width, width) / 8 for at in range(depth)}
    model = infer_types(onnx.load(save_graph(tmp_path / "long.onnx", text, stored)))
    wanted = [
        (each, Choice(weight=each.name, method="int8-weights", reconstruct=True))
        for each in weights(model.graph)
    ]
    held: list[int] = []

    def rewrite(part: ModelProto, plan: Plan, learned: Learned) -> ModelProto:
        gc.collect()
        # By type, as asking some of torch's own objects for their class warns.
        kinds = (torch.Tensor, torch.nn.Parameter)
        tensors = [each for each in gc.get_objects() if type(each) in kinds]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in tensors}
        held.append(sum(each.nbytes() for each in storages.values()))
        return rewrite_weights(part, plan, learned)

    fit_in_turn(model, wanted, {"h0": normal(99, count, 4, width)}, rewrite)
    # Of both models: the inputs, what the next layer is given, and the weights.
    layer = count * 4 * width * 4
    assert max(held) < 2 * (3 * layer + depth * width * width * 4)
    assert max(held) < depth * layer


def test_a_table_is_decoded_in_memory_of_its_own_size(tmp_path: Path) -> None:
    model = infer_types(onnx.load(text_model(tmp_path, vocabulary=6000).path))
    known = {each.name: each for each in weights(model.graph)}
    chosen = {
        "table": Choice(weight="table", method="int8-rows"),
        "mix": Choice(weight="mix", method="int8-weights", reconstruct=True),
    }
    ids = np.random.default_rng(0).integers(0, 6000, (16, 1, 8))
    samples = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    wanted = [(known[name], choice) for name, choice in chosen.items()]
    tracemalloc.start()
    try:
        fit_in_turn(model, wanted, samples, rewrite_weights)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * known["table"].size * 4
