"""Bytes of compiled code as they are predicted, and as the compiler makes them."""

from pathlib import Path

import onnx
import pytest

from edgeopt.artifact import Method
from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.compress import apply_plan, make_plan, predict_footprint
from edgeopt.compress.code import predict_code
from edgeopt.model.describe import facts
from edgeopt.model.graph import infer_types
from edgeopt.model.load import read_model
from edgeopt.target import load_target
from tests.graphs import describe, normal, save_graph
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


@pytest.mark.parametrize("target", ["x86-64", "rpi4"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "size", "transformed"),
    [(16, 32, 14, True), (32, 48, 28, True), (32, 64, 12, False), (16, 40, 13, False)],
)
def test_filters_take_in_the_file_what_was_predicted(
    inputs: int, outputs: int, size: int, transformed: bool, target: str, tmp_path: Path
) -> None:
    text = f"""
    agraph (float[1,{inputs},{size},{size}] x) => (float[1,{outputs},{size},{size}] y) {{
        y = Conv<pads=[1,1,1,1]>(x, filters)
    }}"""
    filters = normal(0, outputs, inputs, 3, 3)
    model = describe(save_graph(tmp_path / "m.onnx", text, {"filters": filters}))
    board = load_target(target)
    bundle = compile_model(model, board, directory=tmp_path / "bundle", cache=cache_folder())
    predicted = predict_footprint(model, board, runtime=0, program=0)
    assert predicted.weights == bundle.footprint.weights
    assert (predicted.weights > 3 * filters.nbytes) == transformed
