"""Taps that read padding alone are cut, and outputs stay as they are."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeopt.model.oracle import Array, run_model
from edgeopt.model.taps import Window, drop_dead_taps
from tests.graphs import normal


def convolution(
    size: tuple[int, ...],
    taps: tuple[int, ...],
    *,
    pads: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    groups: int = 1,
) -> ModelProto:
    """Return y = Conv(x, w) of x [1, 4, *size] with 6 output channels."""
    kernel = normal(0, 6, 4 // groups, *taps)
    ones = (1,) * len(taps)
    node = helper.make_node(
        "Conv",
        ["x", "w"],
        ["y"],
        kernel_shape=taps,
        pads=pads,
        group=groups,
        strides=strides or ones,
        dilations=dilations or ones,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(kernel, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def output(model: ModelProto, folder: Path, size: tuple[int, ...]) -> Array:
    path = folder / "m.onnx"
    onnx.save_model(model, path)
    return run_model(path, {"x": normal(1, 1, 4, *size)})[0]


def kernel(model: ModelProto) -> list[int]:
    (stored,) = (each for each in model.graph.initializer if each.name == "w")
    return list(stored.dims[2:])


def test_a_sequence_of_one_step_keeps_the_middle_tap(tmp_path: Path) -> None:
    model = convolution((1,), (3,), pads=(1, 1))
    before = output(model, tmp_path, (1,))
    drop_dead_taps(model)
    assert kernel(model) == [1]
    (node,) = model.graph.node
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    assert (given["kernel_shape"], given["pads"]) == ([1], [0, 0])
    np.testing.assert_allclose(output(model, tmp_path, (1,)), before, rtol=1e-6)


def test_a_stride_that_leaves_one_place_drops_the_tap_before_the_edge(tmp_path: Path) -> None:
    model = convolution((2,), (3,), pads=(1, 1), strides=(2,))
    before = output(model, tmp_path, (2,))
    drop_dead_taps(model)
    assert kernel(model) == [2]
    np.testing.assert_allclose(output(model, tmp_path, (2,)), before, rtol=1e-6)


@given(data=st.data())
def test_outputs_stay_whatever_the_window_is(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    draw, axes = data.draw, data.draw(st.integers(1, 2))
    size = tuple(draw(st.integers(1, 5)) for _ in range(axes))
    taps = tuple(draw(st.integers(1, 5)) for _ in range(axes))
    strides = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    dilations = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    before = tuple(draw(st.integers(0, 4)) for _ in range(axes))
    after = tuple(draw(st.integers(0, 4)) for _ in range(axes))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, taps, strict=True)]
    after = tuple(max(a, r - s - b) for a, r, s, b in zip(after, reach, size, before, strict=True))
    model = convolution(
        size,
        taps,
        pads=(*before, *after),
        strides=strides,
        dilations=dilations,
        groups=draw(st.sampled_from([1, 2])),
    )
    folder = tmp_path_factory.mktemp("taps")
    expected = output(model, folder, size)
    drop_dead_taps(model)
    found = output(model, folder, size)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_only_taps_that_no_place_of_the_window_reads_with_are_dead() -> None:
    window = Window(size=4, places=4, taps=3, stride=1, dilation=1, before=1, after=1)
    assert [window.is_dead(tap) for tap in range(3)] == [False, False, False]
    assert window.live() == (0, 3)
    # A window beyond the edge: its first tap reads padding, the second one the last value.
    beyond = Window(size=1, places=1, taps=2, stride=1, dilation=1, before=1, after=0)
    assert beyond.live() == (1, 2)
    # Cutting a tap that is further away than the padding is wide would cut the input.
    wide = Window(size=3, places=1, taps=2, stride=1, dilation=2, before=1, after=0)
    assert wide.is_dead(0)
    assert wide.live() == (0, 2)
    # One tap stays, though it reads nothing.
    outside = Window(size=1, places=1, taps=2, stride=5, dilation=1, before=3, after=0)
    assert all(map(outside.is_dead, range(2)))
    assert outside.live() == (1, 2)


def test_codes_that_are_decoded_are_cut_and_what_others_read_is_not(tmp_path: Path) -> None:
    model = convolution((1,), (3,), pads=(1, 1))
    codes = np.arange(72, dtype=np.int8).reshape(6, 4, 3) - 36
    scale = np.linspace(0.1, 0.6, 6, dtype=np.float32)
    graph = model.graph
    del graph.initializer[:]
    graph.initializer.extend(
        [
            numpy_helper.from_array(codes, "w"),
            numpy_helper.from_array(scale, "scale"),
            numpy_helper.from_array(np.zeros(6, np.int8), "zero"),
        ]
    )
    graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["decoded"], axis=0)
    )
    graph.node[1].input[1] = "decoded"
    before = output(model, tmp_path, (1,))
    shared = ModelProto()
    shared.CopyFrom(model)
    drop_dead_taps(model)
    assert kernel(model) == [1]
    np.testing.assert_allclose(output(model, tmp_path, (1,)), before, rtol=1e-6)
    shared.graph.node.append(helper.make_node("Identity", ["decoded"], ["z"]))
    drop_dead_taps(shared)
    assert kernel(shared) == [3]
