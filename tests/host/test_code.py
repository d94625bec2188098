"""Bytes of compiled code as they are predicted, and as the compiler makes them."""

from pathlib import Path

import onnx
import pytest

from edgeopt.artifact import Method
from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.compress import apply_plan, make_plan
from edgeopt.compress.code import predict_code
from edgeopt.model.describe import facts
from edgeopt.model.graph import infer_types
from edgeopt.model.load import read_model
from edgeopt.target import load_target
from tests.host.test_tune import write_mlp

pytestmark = pytest.mark.host

#: 1 % of what is pushed with the least model: the device program alone has 2.2 MB.
CLOSE = 22_000


@pytest.mark.parametrize("target", ["x86-64", "rpi4"])
@pytest.mark.parametrize("method", ["float32", "int8-weights", "int4-blocks"])
def test_code_of_a_small_model_is_predicted_within_a_hundredth_of_what_is_pushed(
    tmp_path: Path, method: Method, target: str
) -> None:
    path = tmp_path / "mlp.onnx"
    write_mlp(path)
    model = read_model(path, facts(onnx.load(path)), provenance=())
    plan = make_plan(model, method, directory=tmp_path / "plan")
    made = apply_plan(model, plan, directory=tmp_path / "plan")
    bundle = compile_model(
        made, load_target(target), directory=tmp_path / "bundle", cache=cache_folder()
    )
    (code,) = (each.size for each in bundle.files if each.name == "model.so")
    assert abs(predict_code(infer_types(onnx.load(made.path))) - code) < CLOSE
