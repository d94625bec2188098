"""Graphs without the values of large tensors."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeopt.errors import ModelError
from edgeopt.model.skim import SMALL, skim_model
from tests.graphs import describe, image_model, normal, save_graph, text_model


def emptied(path: Path) -> onnx.ModelProto:
    """Read a model whole, and clear what is large."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > SMALL:
            tensor.ClearField("raw_data")
    return model


def test_a_graph_is_read_as_it_is_but_for_its_large_values(tmp_path: Path) -> None:
    for model in (text_model(tmp_path), image_model(tmp_path)):
        found = skim_model(model.path)
        assert found == emptied(model.path)
        assert found != onnx.load(model.path)
        assert found.ByteSize() < 10_000


def test_values_are_left_out_from_one_more_than_small_on(tmp_path: Path) -> None:
    text = "g (float[1,1024] x) => (float[1,1025] y) { s = Add(x, a) y = MatMul(s, b) }"
    count = SMALL // 4
    stored = {"a": normal(0, 1, count), "b": normal(1, count, count + 1)}
    found = skim_model(save_graph(tmp_path / "m.onnx", text, stored))
    first, second = found.graph.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(first), stored["a"])
    assert not second.raw_data
    assert list(second.dims) == [count, count + 1]


def test_every_other_field_is_kept(tmp_path: Path) -> None:
    model = onnx.load(text_model(tmp_path).path)
    model.producer_name, model.model_version, model.doc_string = "someone", 1 << 40, "told"
    helper.set_model_props(model, {"key": "value"})
    model.graph.node[0].attribute.append(helper.make_attribute("scale", 0.5))
    model.graph.node[0].attribute.append(helper.make_attribute("value", normal(0, 2).tolist()))
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    assert skim_model(path) == emptied(path)


def test_what_is_no_message_is_refused(tmp_path: Path) -> None:
    whole = text_model(tmp_path).path.read_bytes()
    for at, content in enumerate((whole[:-50], b"\x3a\xff\xff\xff\xff", b"\x3b\x01", b"\x80")):
        path = tmp_path / f"{at}.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="cannot be read"):
            skim_model(path)


def test_the_facts_of_a_skimmed_graph_are_those_of_the_model(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    path = tmp_path / "skimmed.onnx"
    onnx.save(skim_model(model.path), path)
    found = describe(path)
    assert (found.inputs, found.outputs, found.parameters) == (
        model.inputs,
        model.outputs,
        model.parameters,
    )
