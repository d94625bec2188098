import pytest

from edgeopt.artifact import TensorSpec
from edgeopt.errors import ConfigError
from edgeopt.model.normalize import check_shapes, parse_shape

IDS = TensorSpec(name="ids", dtype="int64", shape=(-1, -1))
IMAGE = TensorSpec(name="image", dtype="float32", shape=(-1, 3, 224, -1))
FIXED = TensorSpec(name="state", dtype="float32", shape=(2, 1))


def test_missing_shapes_are_named_with_the_options_to_type() -> None:
    with pytest.raises(ConfigError) as caught:
        check_shapes((IDS, IMAGE, FIXED), {})
    assert caught.value.why == "ids is ?x?; image is ?x3x224x?"
    assert caught.value.fix == "add --shape ids=1x32 --shape image=1x3x224x32"


def test_a_fixed_model_needs_no_shapes_and_may_be_given_its_own() -> None:
    check_shapes((FIXED,), {})
    check_shapes((FIXED,), {"state": (2, 1)})


@pytest.mark.parametrize("shape", [(1, 3, 225, 32), (1, 3, 224), (1, 3, 224, 32, 1), ()])
def test_a_shape_that_contradicts_the_model_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="contradicts the model"):
        check_shapes((IMAGE,), {"image": shape})


def test_a_shape_for_no_input_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="its inputs are ids, state"):
        check_shapes((IDS, FIXED), {"idz": (1, 32)})


@pytest.mark.parametrize(
    "text", ["ids", "ids=1x", "ids=ax2", "=1", "ids=1x0", "ids=1 x 2", "ids=-1"]
)
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an input's shape"):
        parse_shape(text)


def test_names_of_exporters_are_taken_as_they_are() -> None:
    assert parse_shape("onnx::Shape_422=1x32") == ("onnx::Shape_422", (1, 32))
