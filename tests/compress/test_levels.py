from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Choice, Method, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.blocks import encode_blocks
from edgeopt.compress.factors import inverse_factor
from edgeopt.compress.levels import LARGEST, codes_of, find_levels, round_to_levels
from edgeopt.compress.reconstruct import round_blocks
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_plan import draw
from tests.compress.test_reconstruct import correlated, decoded, hessian_of
from tests.graphs import normal, text_model

METHODS: tuple[Method, ...] = ("codebook16-blocks", "codebook4-blocks")


def lost(rows: Array, codes: Array, scales: Array) -> float:
    return float(np.square(rows - decoded(codes, scales)).sum() / np.square(rows).sum())


@pytest.mark.parametrize(("bits", "error"), [(2, 0.1175), (4, 0.009497)])
def test_levels_of_normal_numbers_are_those_of_max(bits: int, error: float) -> None:
    """Max 1960 (IRE Trans. IT 6) tabulates the least squared error of so many levels."""
    values = normal(0, 1, 1 << 17)
    levels = find_levels(values, block=1 << 17, bits=bits)
    # The largest level stands for that many standard deviations.
    largest = {2: 1.510, 4: 2.733}[bits]
    scale = np.full(1, largest / LARGEST, np.float32)
    found = scale * round_to_levels(values, scale, levels)
    assert np.square(values - found).mean() == pytest.approx(error, rel=0.05)
    if bits == 2:
        assert levels * scale == pytest.approx([-1.51, -0.453, 0.453, 1.51], abs=0.03)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_levels_lose_less_of_normal_numbers_than_even_steps(bits: int, seed: int) -> None:
    rows = normal(seed, 64, 256)
    levels = find_levels(rows, block=128, bits=bits)
    book = lost(rows, *encode_blocks(rows, block=128, bits=bits, levels=levels))
    even = lost(rows, *encode_blocks(rows, block=128, bits=bits))
    assert book < 0.9 * even


def test_columns_that_count_more_decide_where_levels_are() -> None:
    few = np.tile(np.array([1, -1, 0.25, -0.25], np.float32), (50, 16))
    size = np.sqrt(np.square(few[0]).mean())
    rows = np.concatenate([normal(0, 50, 64), few], axis=1)
    importance = np.repeat(np.array([1e-6, 1], np.float32), 64)
    levels = find_levels(rows, block=64, bits=2, importance=importance)
    plain = find_levels(rows, block=64, bits=2)
    # Levels are in units of a block's root mean square: here 1 is the largest of both.
    found, other = (
        np.abs(few - round_to_levels(few, scale, each) * scale).max()
        for each, scale in (
            (levels, np.full(1, 1 / LARGEST, np.float32)),
            (plain, np.full(1, size / plain[2] * 0.45, np.float32)),
        )
    )
    assert found < 0.02 < other


def test_places_of_levels_are_found_again() -> None:
    levels = np.array([-64, -9, 9, 60], np.int8)
    chosen = levels[np.random.default_rng(0).integers(0, 4, (6, 8))]
    assert np.array_equal(levels[codes_of(chosen, levels)], chosen)


@pytest.mark.parametrize("bits", [2, 4])
def test_reconstruction_shrinks_the_error_of_a_layer_with_levels_too(bits: int) -> None:
    rows, x = normal(0, 40, 128), correlated(9, 400, 128)
    levels = find_levels(rows, block=64, bits=bits)
    nearest = rows - decoded(*encode_blocks(rows, block=64, bits=bits, levels=levels))
    found = round_blocks(rows, inverse_factor(hessian_of(x)), block=64, bits=bits, spacing="kmeans")
    assert found.levels is not None
    assert set(np.unique(found.codes)) <= set(found.levels.tolist())
    made = rows - decoded(found.codes, found.scales)
    assert np.linalg.norm(x @ made.T) < 0.6 * np.linalg.norm(x @ nearest.T)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fitted", [False, True])
def test_levels_are_looked_up_and_scaled_in_standard_operators(
    tmp_path: Path, method: Method, fitted: bool
) -> None:
    model = text_model(tmp_path)
    choices = (
        Choice(weight="table", method=method, block=32),
        Choice(weight="mix", method=method, block=16, reconstruct=fitted),
    )
    made = apply_plan(
        model,
        Plan(name="x", choices=choices),
        directory=tmp_path / "out",
        samples=draw(model, 8, 1),
    )
    loaded = onnx.load(made.path)
    onnx.checker.check_model(loaded, full_check=True)
    kinds = {
        each.name: (
            onnx.helper.tensor_dtype_to_np_dtype(each.data_type).name,
            tuple(each.dims),
        )
        for each in loaded.graph.initializer
    }
    bits = 4 if method == "codebook16-blocks" else 2
    assert kinds[f"table.uint{bits}"] == (f"uint{bits}", (500, 32))
    assert kinds["table.levels"] == ("int8", (1 << bits,))
    assert kinds[f"mix.uint{bits}"] == (f"uint{bits}", (32, 64))
    assert kinds["mix.scale.half"] == ("float16", (2, 64))
    feeds = draw(model, 4, 0)
    old, new = run_samples(model, feeds)[0], run_samples(made, feeds)[0]
    assert 0 < np.abs(new - old).max() < np.abs(old).max()
