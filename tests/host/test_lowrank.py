"""Weights of low rank as compress writes them: compiled to onnxruntime's outputs, no larger."""

from pathlib import Path

import pytest

from edgeopt.artifact import Choice, Method, Model, Plan
from edgeopt.compress import apply_plan
from edgeopt.model.oracle import run_model, seeded_inputs
from tests.compile.kit import distance, run_natively
from tests.host.arm_kit import run_on_arm
from tests.host.test_blocks import save_text

pytestmark = pytest.mark.host

FORMS: tuple[tuple[Method, int | None], ...] = (
    ("float16", None),
    ("int8-weights", None),
    ("int4-blocks", 32),
    ("int2-blocks", 32),
)


def compress(folder: Path, method: Method, block: int | None, rank: int = 64) -> Model:
    choices = tuple(
        Choice(weight=name, method=method, block=block, rank=rank)
        for name in ("table", "widen", "mix", "turned")
    )
    return apply_plan(
        save_text(folder), Plan(name=method, choices=choices), directory=folder / f"rank{rank}"
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_compiled_factors_give_onnxruntimes_outputs(
    form: tuple[Method, int | None], tmp_path: Path
) -> None:
    made = compress(tmp_path, *form)
    for seed in range(2):
        feeds = seeded_inputs(made, seed)
        found, wanted = run_natively(made.path, feeds)[0], run_model(made, feeds)[0]
        assert distance(found, wanted) < 4e-6
    # What is compared depends on the rank: another one is far away.
    other = run_model(compress(tmp_path, *form, rank=32), feeds)[0]
    assert distance(found, other) > 1e-2


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_64_bit_arm_computes_factors_in_the_memory_that_was_predicted(
    form: tuple[Method, int | None], tmp_path: Path
) -> None:
    made = compress(tmp_path, *form)
    seen = run_on_arm(made, tmp_path)
    assert seen.distance < 4e-6
    predicted, compiled = seen.predicted, seen.compiled
    # Panels are padded to whole vectors, which is more of a small matrix than of a large one.
    assert predicted.flash == pytest.approx(compiled.flash, rel=0.01)
    assert predicted.peak == pytest.approx(compiled.peak, rel=0.03)
    assert compiled.weights < 1.15 * made.path.stat().st_size
