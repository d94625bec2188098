"""What a form makes of a weight by itself is what it makes of it in the whole model."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Model, Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.choices import possible_choices
from edgeopt.compress.decode import decode_choice, weigh_parts
from edgeopt.compress.learned import Learned
from edgeopt.compress.part import Parts
from edgeopt.model.graph import infer_types, weights
from tests.graphs import deep_model, image_model, text_model

EVERY: dict[str, Callable[[Path], Model]] = {
    "text": text_model,
    "image": image_model,
    "deep": deep_model,
}


@pytest.mark.parametrize("name", EVERY)
def test_a_part_holds_the_bytes_and_decodes_to_the_values_of_the_model(
    tmp_path: Path, name: str
) -> None:
    model = EVERY[name](tmp_path)
    loaded = infer_types(onnx.load(model.path))
    known = {each.name: each for each in weights(loaded.graph)}
    parts, learned = Parts(loaded), Learned({}, {})
    decoded, seen = 0, set()
    for choices in possible_choices(model).values():
        for choice in choices:
            weight = known[choice.weight]
            form = (weight.role, choice.model_copy(update={"weight": ""}))
            if choice.method in ("int8-dynamic", "int8-static") or form in seen:
                continue
            seen.add(form)
            part = parts.rewrite(weight, choice, learned)
            made = apply_plan(model, Plan(name="x", choices=(choice,)), directory=tmp_path / "x")
            whole = onnx.load(made.path)
            sizes = [weigh_parts(each.graph, [weight.name]) for each in (part, whole)]
            assert sizes[0] == sizes[1]
            found, expected = (decode_choice(weight, each, choice) for each in (part, whole))
            if expected is None:
                assert found is None
                continue
            assert found is not None
            np.testing.assert_array_equal(found, expected)
            decoded += 1
    assert decoded > 5
