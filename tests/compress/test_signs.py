from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Choice, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.blocks import encode_blocks
from edgeopt.compress.factors import inverse_factor
from edgeopt.compress.levels import Levels
from edgeopt.compress.reconstruct import round_blocks
from edgeopt.compress.signs import BINARY, TERNARY, find_magnitudes, pack_signs, signs_of_bytes
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_plan import draw
from tests.compress.test_reconstruct import correlated, decoded, hessian_of
from tests.graphs import normal, text_model


def least_error(row: Array, levels: Levels, weights: Array) -> float:
    """Try every combination of codes, each with the magnitude of least squares."""
    errors = []
    for given in product(levels.tolist(), repeat=len(row)):
        codes = np.array(given, np.float64)
        size = (weights * codes * codes).sum()
        best = (weights * codes * row).sum() / size if size else 0.0
        errors.append((weights * (row - max(best, 0.0) * codes) ** 2).sum())
    return float(min(errors))


@pytest.mark.parametrize("levels", [TERNARY, BINARY], ids=["ternary", "binary"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_magnitude_is_that_of_the_best_of_all_codes(
    levels: Levels, weighted: bool, seed: int
) -> None:
    row = normal(seed, 1, 8)
    weights = np.exp(normal(seed + 50, 8)) if weighted else np.ones(8, np.float32)
    scale = find_magnitudes(row, levels, weights if weighted else None)
    codes = levels[np.abs(row[0][:, None] - scale * levels).argmin(axis=1)]
    found = float((weights * (row[0] - scale * codes) ** 2).sum())
    assert found == pytest.approx(least_error(row[0], levels, weights), rel=1e-5)
    # Another magnitude loses more, with its own nearest codes too.
    other = 1.2 * scale
    codes = levels[np.abs(row[0][:, None] - other * levels).argmin(axis=1)]
    assert float((weights * (row[0] - other * codes) ** 2).sum()) > found


def test_normal_numbers_lose_what_is_known_of_their_signs() -> None:
    """With E|w| = sqrt(2 / pi), one magnitude leaves 1 - 2 / pi of the squares (XNOR-Net)."""
    rows = normal(0, 1, 1 << 16)
    for levels, bits, error in ((BINARY, 1, 1 - 2 / np.pi), (TERNARY, 2, 0.1902)):
        codes, scales = encode_blocks(rows, block=1 << 16, bits=bits, levels=levels)
        lost = np.square(rows - decoded(codes, scales)).mean() / np.square(rows).mean()
        assert lost == pytest.approx(error, rel=0.02)


def test_signs_are_read_back_from_their_bytes() -> None:
    codes = np.where(normal(3, 6, 32) > 0, 1, -1).astype(np.int8)
    packed = pack_signs(codes)
    assert packed.shape == (6, 4)
    assert np.array_equal(signs_of_bytes()[packed].reshape(6, 32), codes)


@pytest.mark.parametrize("levels", [TERNARY, BINARY], ids=["ternary", "binary"])
def test_reconstruction_shrinks_the_error_of_a_layer_with_signs_too(levels: Levels) -> None:
    rows, x = normal(0, 40, 128), correlated(9, 400, 128)
    bits = 1 if levels is BINARY else 2
    nearest = rows - decoded(*encode_blocks(rows, block=64, bits=bits, levels=levels))
    factor = inverse_factor(hessian_of(x))
    found = round_blocks(rows, factor, block=64, bits=bits, levels=levels)
    assert set(np.unique(found.codes)) == set(levels.tolist())
    made = rows - decoded(found.codes, found.scales)
    assert np.linalg.norm(x @ made.T) < 0.7 * np.linalg.norm(x @ nearest.T)


@pytest.mark.parametrize("fitted", [False, True])
def test_a_matrix_of_signs_takes_a_bit_a_value_in_standard_operators(
    tmp_path: Path, fitted: bool
) -> None:
    model = text_model(tmp_path)
    choice = Choice(weight="mix", method="binary-blocks", block=32, reconstruct=fitted)
    plan = Plan(name="x", choices=(choice,))
    made = apply_plan(model, plan, directory=tmp_path / "out", samples=draw(model, 8, 1))
    loaded = onnx.load(made.path)
    onnx.checker.check_model(loaded, full_check=True)
    sizes = {each.name: (each.data_type, tuple(each.dims)) for each in loaded.graph.initializer}
    assert sizes["mix.bits"] == (onnx.TensorProto.UINT8, (64, 4))
    assert sizes["mix.scale.half"] == (onnx.TensorProto.FLOAT16, (64, 1))
    assert "mix" not in sizes
    feeds = draw(model, 4, 0)
    found = run_samples(made, feeds)[0]
    # The reference: the matrix as its formula has it, in the place of the original one.
    whole = onnx.load(model.path)
    stored = {each.name: each for each in whole.graph.initializer}
    values = onnx.numpy_helper.to_array(stored["mix"])
    codes = np.where(values > 0, 1, -1) if not fitted else None
    old = run_samples(model, feeds)[0]
    assert 0 < np.abs(found - old).max() < 1.5 * np.abs(old).max()
    if codes is None:
        return
    scales = np.abs(values).mean(axis=0).astype(np.float16).astype(np.float32)
    stored["mix"].CopyFrom(onnx.numpy_helper.from_array((codes * scales).astype(np.float32), "mix"))
    onnx.save(whole, tmp_path / "reference.onnx")
    wanted = run_samples(model.model_copy(update={"path": tmp_path / "reference.onnx"}), feeds)[0]
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
