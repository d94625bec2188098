from pathlib import Path

from edgeopt.artifact import Footprint, Model
from edgeopt.job import Correction, plan_name


def need(flash: int, arena: int) -> Footprint:
    return Footprint(flash=flash, weights=0, weights_resident=0, arena=arena, runtime=0)


def test_a_correction_adds_what_a_prediction_was_short_of() -> None:
    first = Correction().after(need(100, 50), need(110, 70))
    assert first == Correction(memory=20, flash=10)
    # The second prediction had the first correction in it.
    assert first.after(need(110, 70), need(111, 60)) == Correction(memory=20, flash=11)


def test_a_plan_is_named_by_what_made_the_model() -> None:
    model = Model(
        path=Path("m"),
        sha256="",
        inputs=(),
        outputs=(),
        parameters=0,
        provenance=("m", "normalized"),
    )
    assert plan_name(model) == "float32"
    made = model.model_copy(update={"provenance": (*model.provenance, "int8-rows")})
    assert plan_name(made) == "int8-rows"
