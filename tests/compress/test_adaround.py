"""Values rounded up or down, whichever together moves a layer's outputs least."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from edgeopt.artifact import Choice, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.adaround import round_adaptively
from edgeopt.compress.blocks import encode_blocks
from edgeopt.compress.codes import encode_weight
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_plan import draw
from tests.compress.test_reconstruct import correlated, decoded, hessian_of
from tests.graphs import normal, text_model


def moved(x: Array, change: Array) -> float:
    return float(np.square(x @ change.T).sum())


def test_it_comes_near_the_best_of_all_ways_to_round() -> None:
    shares = []
    for seed in range(4):
        rows, x = normal(seed, 1, 10), correlated(seed + 9, 200, 10)
        codes, scales = encode_weight(rows, axis=0)
        found = round_adaptively(rows, hessian_of(x))
        low = np.floor(rows / scales[:, None])
        ways = (np.clip(low + np.array(ups), -127, 127) for ups in product((0, 1), repeat=10))
        least = min(moved(x, way * scales[:, None] - rows) for way in ways)
        ours = moved(x, decoded(found.codes, found.scales) - rows)
        nearest = moved(x, codes * scales[:, None] - rows)
        assert least <= ours * 1.001
        shares.append((ours - least) / (nearest - least))
    # What the nearest codes lose against the best ones: most of it is won back.
    assert np.mean(shares) < 0.5


@pytest.mark.parametrize("bits", [2, 4])
def test_a_layers_outputs_move_less_than_by_the_nearest_codes(bits: int) -> None:
    rows, x = normal(0, 24, 64), correlated(9, 400, 64)
    codes, scales = encode_blocks(rows, block=32, bits=bits)
    found = round_adaptively(rows, hessian_of(x), bits=bits, block=32)
    assert np.array_equal(found.scales, scales)
    ours, nearest = (moved(x, decoded(each, scales) - rows) for each in (found.codes, codes))
    assert ours < 0.25 * nearest
    # Each value goes to one of the two codes beside it, or the last that there is.
    wide = rows / np.repeat(scales, 32, axis=1)
    limits = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    low, high = (np.clip(each(wide), *limits) for each in (np.floor, np.ceil))
    assert np.all((found.codes == low) | (found.codes == high))


def test_inputs_that_know_nothing_of_one_another_leave_the_nearest_codes() -> None:
    rows = normal(0, 16, 32)
    codes, _ = encode_blocks(rows, block=32, bits=4)
    found = round_adaptively(rows, np.eye(32), bits=4, block=32)
    assert np.count_nonzero(found.codes != codes) <= 0.02 * codes.size


def test_a_plan_says_how_its_codes_are_rounded(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    samples = draw(model, 24, 1)
    old = run_samples(model, samples)[0]
    shas, errors = set(), []
    for fields in ({}, {"reconstruct": True}, {"reconstruct": True, "rounding": "adaround"}):
        choice = Choice.model_validate(
            {"weight": "mix", "method": "int2-blocks", "block": 32, **fields}
        )
        plan = Plan.model_validate_json(Plan(name="x", choices=(choice,)).model_dump_json())
        made = apply_plan(model, plan, directory=tmp_path / "out", samples=samples)
        again = apply_plan(model, plan, directory=tmp_path / "again", samples=samples)
        assert made.sha256 == again.sha256
        shas.add(made.sha256)
        errors.append(float(np.square(run_samples(made, samples)[0] - old).sum()))
    assert len(shas) == 3
    # Inputs of random rows know nothing of one another: little is won, and nothing lost.
    assert max(errors) < 1.1 * errors[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "int4-blocks", "block": 32},
        {"method": "codebook4-blocks", "block": 32, "reconstruct": True},
        {"method": "codebook-rows", "group": 8, "reconstruct": True},
    ],
    ids=str,
)
def test_only_even_steps_that_are_reconstructed_can_be_rounded_so(
    fields: dict[str, object],
) -> None:
    with pytest.raises(ValidationError, match="adaround"):
        Choice.model_validate({"weight": "w", "rounding": "adaround", **fields})
