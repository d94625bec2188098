"""Bytes of compiled code, predicted from a graph: each distinct kernel counts once."""

from itertools import pairwise
from pathlib import Path

import onnx

from edgeopt.artifact import Method, Model
from edgeopt.compress.code import predict_code
from edgeopt.compress.plan import apply_plan, make_plan
from edgeopt.model.graph import infer_types
from tests.graphs import describe, normal, save_graph


def code(model: Model) -> int:
    return predict_code(infer_types(onnx.load(model.path)))


def layers(folder: Path, *widths: int) -> Model:
    """A product and tanh for each pair of neighbouring widths."""
    folder.mkdir(exist_ok=True)
    lines, stored = [], {}
    for at, (depth, width) in enumerate(pairwise(widths)):
        lines.append(f"p{at} = MatMul(x{at}, w{at}) x{at + 1} = Tanh(p{at})")
        stored[f"w{at}"] = normal(at, depth, width)
    last = len(widths) - 1
    signature = f"(float[4,{widths[0]}] x0) => (float[4,{widths[-1]}] x{last})"
    text = f"g {signature} {{ {' '.join(lines)} }}"
    return describe(save_graph(folder / "m.onnx", text, stored))


def test_a_layer_that_is_like_another_adds_no_code(tmp_path: Path) -> None:
    once, thrice = layers(tmp_path / "a", 64, 64), layers(tmp_path / "b", 64, 64, 64, 64)
    assert code(once) == code(thrice)
    other = layers(tmp_path / "c", 64, 64, 32)
    assert code(other) > code(once)


def test_forms_of_weights_count_the_same_and_integers_more(tmp_path: Path) -> None:
    model = layers(tmp_path, 64, 64)

    def form(method: Method) -> int:
        plan = make_plan(model, method, directory=tmp_path / method)
        return code(apply_plan(model, plan, directory=tmp_path / method))

    assert code(model) == form("float16") == form("int8-weights") == form("int4-blocks")
    assert form("int8-dynamic") > code(model)
