from pathlib import Path

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from edgeopt.artifact import Choice, Method, Plan
from edgeopt.compress import apply_plan, make_plan, possible_choices
from edgeopt.model.oracle import run_samples
from tests.compress.test_plan import draw
from tests.graphs import describe, image_model, normal, save_graph, text_model


def forms(choices: tuple[Choice, ...]) -> list[tuple[Method, int | None]]:
    return [(each.method, each.block) for each in choices]


def test_every_form_of_a_weight_is_listed_from_the_least_harm_to_the_most(tmp_path: Path) -> None:
    found = possible_choices(text_model(tmp_path))
    assert list(found) == ["table", "mix"]
    assert forms(found["table"]) == [
        ("float16", None),
        ("int8-rows", None),
        ("int8-blocks", 32),
        ("codebook-weights", None),
        ("codebook16-blocks", 32),
        ("int4-blocks", 32),
        ("codebook4-blocks", 32),
        ("int2-blocks", 32),
        ("ternary-blocks", 32),
    ]
    assert forms(found["mix"]) == [
        ("float16", None),
        ("int8-blocks", 32),
        ("int8-weights", None),
        ("codebook-weights", None),
        ("int8-dynamic", None),
        ("int8-static", None),
        ("codebook16-blocks", 32),
        ("int4-blocks", 32),
        ("codebook4-blocks", 32),
        ("int2-blocks", 32),
        ("ternary-blocks", 32),
        ("binary-blocks", 32),
        ("int8-sparse", None),
        ("int8-sparse", None),
    ]
    assert [each.width for each in found["mix"][-2:]] == [16, 16]


def test_only_blocks_that_divide_are_listed(tmp_path: Path) -> None:
    found = possible_choices(image_model(tmp_path))
    assert forms(found["kernel"]) == [
        ("float16", None),
        ("int8-weights", None),
        ("int8-static", None),
    ]
    blocks = [each.block for each in found["head"] if each.method == "int4-blocks"]
    assert blocks == [32, 64, 128]
    text = "agraph (float[4,40] x) => (float[4,40] y) { y = MatMul(x, w) }"
    model = describe(save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 40, 40)}))
    assert all(each.block is None for each in possible_choices(model)["w"])


@pytest.mark.parametrize(("after", "kept"), [("Relu(z)", True), ("Softmax(z)", False)])
def test_an_operator_set_without_scales_of_channels_is_raised_or_such_forms_are_not_listed(
    tmp_path: Path, after: str, kept: bool
) -> None:
    text = f"agraph (float[4,40] x) => (float[4,40] y) {{ z = MatMul(x, w) y = {after} }}"
    path = save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 40, 40)})
    loaded = onnx.load(path)
    loaded.opset_import[0].version = 12
    onnx.save(loaded, path)
    model = describe(path)
    listed = {each.method for each in possible_choices(model)["w"]}
    assert ("int8-weights" in listed) == kept
    plan = make_plan(model, "int8-weights", directory=tmp_path / "plan")
    made = apply_plan(model, plan, directory=tmp_path / "out")
    feeds = draw(model, 3, 0)
    assert np.allclose(run_samples(made, feeds)[0], run_samples(model, feeds)[0], atol=0.2)


def test_every_listed_form_can_be_applied_and_keeps_something_of_the_outputs(
    tmp_path: Path,
) -> None:
    model = text_model(tmp_path)
    feeds = draw(model, 4, 0)
    wanted = run_samples(model, feeds)[0]
    for choices in possible_choices(model).values():
        for choice in choices:
            if choice.method == "int8-static":
                continue
            plan = Plan(name="one", choices=(choice,))
            made = apply_plan(model, plan, directory=tmp_path / "out")
            error = np.abs(run_samples(made, feeds)[0] - wanted).max() / np.abs(wanted).max()
            assert 0 < error < 0.8


def test_a_model_whose_operators_mean_something_else_later_has_no_blocks(tmp_path: Path) -> None:
    text = """
    agraph (float[1,4,32] x) => (float[1,4,32] y) {
        g = GroupNormalization<num_groups=2>(x, s, b)
        y = MatMul(g, w)
    }"""
    stored = {"s": normal(0, 2), "b": normal(1, 2), "w": normal(2, 32, 32)}
    model = describe(save_graph(tmp_path / "m.onnx", text, stored))
    assert all(each.block is None for each in possible_choices(model)["w"])


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "int4-blocks"},
        {"method": "int2-blocks", "block": 8},
        {"method": "int2-blocks", "block": 256},
        {"method": "int4-blocks", "block": 24},
        {"method": "int8-weights", "block": 32},
        {"method": "float16", "reconstruct": True},
        {"method": "int8-static", "reconstruct": True},
    ],
    ids=str,
)
def test_a_choice_that_means_nothing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Choice.model_validate({"weight": "w", **fields})


def test_a_plan_for_tables_leaves_convolutions_the_form_that_they_have(tmp_path: Path) -> None:
    plan = make_plan(image_model(tmp_path), "codebook-rows", directory=tmp_path / "plan")
    assert {each.weight: each.method for each in plan.choices}["kernel"] == "int8-weights"
