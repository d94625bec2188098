"""Tables whose bytes stand for vectors: compiled to onnxruntime's outputs, packed in memory."""

from pathlib import Path

import pytest

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compile.lift import lift_constants
from edgeopt.compress import apply_plan
from edgeopt.model.oracle import run_model, seeded_inputs
from tests.compile.kit import distance, lower_natively, run_natively
from tests.host.arm_kit import run_on_arm
from tests.host.test_blocks import ROWS, WIDTH, save_text

pytestmark = pytest.mark.host

#: Values that a byte stands for, and rows that ids share.
FORMS = ((4, None), (16, None), (8, 2000))


def compress(folder: Path, group: int, rows: int | None) -> Model:
    """Store the table in groups, and matrices in 4 bits, so that it is most of the bytes."""
    choices = (
        Choice(weight="table", method="codebook-rows", group=group, rows=rows),
        *(
            Choice(weight=name, method="int4-blocks", block=32)
            for name in ("widen", "mix", "turned")
        ),
    )
    return apply_plan(
        save_text(folder), Plan(name="groups", choices=choices), directory=folder / f"of{group}"
    )


@pytest.mark.parametrize(("group", "rows"), FORMS)
def test_compiled_groups_give_onnxruntimes_outputs(
    group: int, rows: int | None, tmp_path: Path
) -> None:
    made = compress(tmp_path, group, rows)
    for seed in range(2):
        feeds = seeded_inputs(made, seed)
        found, wanted = run_natively(made.path, feeds)[0], run_model(made, feeds)[0]
        assert distance(found, wanted) < 4e-6
    # What is compared depends on the codes: those of other groups are far away.
    other = run_model(compress(tmp_path, 2 * group, rows), feeds)[0]
    assert distance(found, other) > 1e-2


@pytest.mark.parametrize(("group", "rows"), FORMS)
def test_tables_stay_bytes_and_vectors_half_floats(
    group: int, rows: int | None, tmp_path: Path
) -> None:
    arrays = lift_constants(lower_natively(compress(tmp_path, group, rows).path)[0]).arrays
    shapes = {(each.dtype.name, each.shape) for each in arrays}
    assert ("uint8", (rows or ROWS, WIDTH // group)) in shapes
    assert rows is None or ("uint16", (ROWS,)) in shapes
    assert ("float16", (256 * WIDTH // group, group)) in shapes
    assert max(each.nbytes for each in arrays) < 2 * ROWS * WIDTH // group


@pytest.mark.parametrize(("group", "rows"), FORMS)
@pytest.mark.parametrize("machine", ["aarch64", "arm"])
def test_arm_reads_groups_in_the_memory_that_was_predicted(
    group: int, rows: int | None, machine: str, tmp_path: Path
) -> None:
    made = compress(tmp_path, group, rows)
    seen = run_on_arm(made, tmp_path, machine=machine)
    assert seen.distance < 4e-6
    predicted, compiled = seen.predicted, seen.compiled
    assert predicted.weights == pytest.approx(compiled.weights, rel=0.03)
    assert predicted.flash == pytest.approx(compiled.flash, rel=0.01)
    assert predicted.peak == pytest.approx(compiled.peak, rel=0.03)
