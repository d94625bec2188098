import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Choice, Method, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.blocks import encode_blocks, round_codes
from edgeopt.compress.codes import encode_weight
from edgeopt.compress.factors import DAMPING, inverse_factor
from edgeopt.compress.reconstruct import (
    collect_hessians,
    layer_hessians,
    round_blocks,
    round_channels,
)
from edgeopt.model.graph import weights
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_plan import draw
from tests.graphs import describe, normal, save_graph, text_model


def correlated(seed: int, count: int, depth: int) -> Array:
    """Inputs of which most of the energy lies in few directions, as in real layers."""
    mixed = normal(seed, count, 8) @ normal(seed + 1, 8, depth)
    return np.asarray(mixed + 0.1 * normal(seed + 2, count, depth), np.float32)


def hessian_of(x: Array) -> Array:
    return np.asarray(x.T @ x, np.float64)


def decoded(codes: Array, scales: Array) -> Array:
    width = codes.shape[1] // scales.shape[1]
    return np.asarray(codes * np.repeat(scales, width, axis=1), np.float32)


def remove_one_by_one(rows: Array, hessian: Array, scales: Array, bits: int) -> Array:
    """Round by Optimal Brain Quantization in fixed order, as its formulas stand.

    After each column: w -= (w_k - q_k) / [H^-1]_kk * [H^-1]_k, and H^-1 without column k.
    """
    damped = hessian + np.eye(len(hessian)) * DAMPING * np.diag(hessian).mean()
    inverse, left = np.linalg.inv(damped), rows.astype(np.float64)
    codes = np.empty(rows.shape)
    for k in range(rows.shape[1]):
        scale = scales[:, k * scales.shape[1] // rows.shape[1]]
        codes[:, k] = round_codes(left[:, k].astype(np.float32), scale, bits)
        error = (left[:, k] - codes[:, k] * scale) / inverse[k, k]
        left -= np.outer(error, inverse[k])
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return codes


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_codes_are_those_of_the_formula_column_by_column(bits: int, seed: int) -> None:
    rows, hessian = normal(seed, 6, 48), hessian_of(correlated(seed + 50, 200, 48))
    found = round_blocks(rows, inverse_factor(hessian), block=16, bits=bits)
    # The scales are data of the comparison: which they are is asked below.
    wanted = remove_one_by_one(rows, hessian, found.scales, bits)
    # float32 rounds one of several hundred codes to its neighbour, next to a tie.
    assert np.count_nonzero(found.codes != wanted) <= 1


def test_the_formula_without_its_update_gives_other_codes() -> None:
    rows, hessian = normal(0, 6, 48), hessian_of(correlated(50, 200, 48))
    found = round_blocks(rows, inverse_factor(hessian), block=16, bits=4)
    spread = np.repeat(found.scales, 16, axis=1)
    nearest = round_codes(rows, spread, 4)
    assert np.count_nonzero(found.codes != nearest) > 40


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    hessian = hessian_of(correlated(0, 100, 24))
    factor = inverse_factor(hessian)
    damped = hessian + np.eye(24) * DAMPING * np.diag(hessian).mean()
    assert np.allclose(factor.T @ factor @ damped, np.eye(24), atol=1e-6)
    assert np.allclose(factor, np.triu(factor))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_of_a_layer_on_correlated_inputs_shrinks(
    bits: int, block: int, seed: int
) -> None:
    rows, x = normal(seed, 40, 128), correlated(seed + 9, 400, 128)
    unseen = correlated(seed + 9, 800, 128)[400:]
    nearest = rows - decoded(*encode_blocks(rows, block=block, bits=bits))
    found = round_blocks(rows, inverse_factor(hessian_of(x)), block=block, bits=bits)
    made = rows - decoded(found.codes, found.scales)
    for inputs in (x, unseen):
        assert np.linalg.norm(inputs @ made.T) < 0.6 * np.linalg.norm(inputs @ nearest.T)
    # What shrinks is the error of the outputs: that of the weights themselves grows.
    assert np.linalg.norm(made) > np.linalg.norm(nearest)


def test_the_error_of_eight_bits_shrinks_as_well() -> None:
    rows, x = normal(0, 40, 128), correlated(9, 400, 128)
    codes, scales = encode_weight(rows, axis=0)
    found = round_channels(rows, inverse_factor(hessian_of(x)), scales)
    made, nearest = (rows - decoded(each, scales[:, None]) for each in (found.codes, codes))
    assert np.linalg.norm(x @ made.T) < 0.6 * np.linalg.norm(x @ nearest.T)


def test_inputs_without_correlation_leave_nothing_to_make_up_for() -> None:
    rows = normal(0, 8, 64)
    codes, scales = encode_weight(rows, axis=0)
    found = round_channels(rows, inverse_factor(100 * np.eye(64)), scales)
    assert np.array_equal(found.codes, codes)


def test_inputs_that_are_always_zero_do_not_break_the_rounding() -> None:
    rows, x = normal(0, 8, 64), correlated(1, 50, 64)
    x[:, 3:9] = 0
    found = round_blocks(rows, inverse_factor(hessian_of(x)), block=32, bits=4)
    assert np.isfinite(found.scales).all()
    codes, scales = encode_blocks(rows, block=32, bits=4)
    silent = round_blocks(rows, inverse_factor(np.zeros((64, 64))), block=32, bits=4)
    assert np.array_equal(silent.codes, codes)
    assert np.array_equal(silent.scales, scales)


def test_a_hessian_is_the_sum_over_samples_of_what_a_node_is_given(tmp_path: Path) -> None:
    text = "agraph (float[4,32] x) => (float[4,8] y) { h = Relu(x) y = MatMul(h, w) }"
    path = save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 32, 8)})
    samples = {"x": normal(1, 200, 4, 32)}
    found = collect_hessians(onnx.load(path), {("h", True), ("x", False)}, samples)
    seen = samples["x"][:128]
    rows = np.maximum(seen, 0).reshape(-1, 32)
    assert np.allclose(found["h", True], rows.T @ rows, rtol=1e-4)
    turned = seen.transpose(0, 2, 1).reshape(-1, 4)
    assert np.allclose(found["x", False], turned.T @ turned, rtol=1e-4)


def test_what_a_mask_hides_does_not_count(tmp_path: Path) -> None:
    text = """
    agraph (float[1,4,32] x, int64[1,4] attention_mask) => (float[1,4,8] y) {
        number = Cast<to=1>(attention_mask)
        column = Unsqueeze(number, two)
        h = MatMul(x, w)
        y = Mul(h, column)
    }"""
    stored = {"w": normal(0, 32, 8), "two": np.array([2])}
    path = save_graph(tmp_path / "m.onnx", text, stored)
    x, mask = normal(1, 5, 1, 4, 32), np.array([[[1, 1, 0, 0]]] * 5)
    model, source = onnx.load(path), ("x", True)
    found = collect_hessians(model, {source}, {"x": x, "attention_mask": mask})[source]
    seen = x[:, 0, :2].reshape(-1, 32)
    assert np.allclose(found, seen.T @ seen, rtol=1e-4, atol=1e-4)
    whole = collect_hessians(model, {source}, {"x": x, "attention_mask": np.ones_like(mask)})
    assert not np.allclose(found, whole[source], rtol=0.1)


def test_of_a_hessian_there_is_one_copy_and_the_product_that_is_added(tmp_path: Path) -> None:
    text = "agraph (float[4,512] x) => (float[4,8] y) { y = MatMul(x, w) }"
    path = save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 512, 8)})
    model, samples = onnx.load(path), {"x": normal(1, 5, 4, 512)}
    (weight,) = weights(model.graph)
    tracemalloc.start()
    try:
        layer_hessians(model, [weight], samples)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # In double precision, and in single.
    assert peak < 512 * 512 * (8 + 4) * 1.2


@pytest.mark.parametrize(
    ("method", "block"), [("int8-weights", None), ("int4-blocks", 32), ("int2-blocks", 32)]
)
def test_reconstruction_brings_outputs_nearer_and_repeats_to_the_byte(
    method: Method, block: int | None, tmp_path: Path
) -> None:
    text = "agraph (float[8,64] x) => (float[8,48] y) { y = Gemm<transB=1>(x, w) }"
    model = describe(save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 48, 64)}))
    x = correlated(3, 40 * 8, 64).reshape(40, 8, 64)
    wanted = run_samples(model, {"x": x})[0]
    errors, files = [], []
    for reconstruct in (False, True, True):
        choice = Choice(weight="w", method=method, block=block, reconstruct=reconstruct)
        plan = Plan(name="one", choices=(choice,))
        made = apply_plan(model, plan, directory=tmp_path / "out", samples={"x": x[:32]})
        files.append(made.path.read_bytes())
        errors.append(np.linalg.norm(run_samples(made, {"x": x})[0] - wanted))
    assert errors[1] < 0.7 * errors[0]
    assert files[1] == files[2] != files[0]


def test_a_matrix_of_a_text_model_is_reconstructed_along_its_own_axis(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    feeds = draw(model, 8, 0)
    wanted = run_samples(model, feeds)[0]
    choice = Choice(weight="mix", method="int4-blocks", block=32, reconstruct=True)
    plan = Plan(name="one", choices=(choice,))
    made = apply_plan(model, plan, directory=tmp_path / "out", samples=draw(model, 32, 5))
    error = np.abs(run_samples(made, feeds)[0] - wanted).max() / np.abs(wanted).max()
    assert error < 0.15
