"""Convolutions, pools and resizing against onnxruntime: sizes with tails, and every attribute."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt.compile.cpu import describe_cpu
from edgeopt.errors import OperatorUnsupported
from edgeopt.model.oracle import run_model
from tests.compile.kit import Graph, distance, lower_natively, make_target, run_natively

pytestmark = pytest.mark.host

SEEDS = (0, 1, 2)
#: float32 sums of a few hundred terms, in another order.
CLOSE = 2e-6
Build = Callable[[Graph, str], Any]


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compare(folder: Path, shape: tuple[int, ...], build: Build, *, limit: float = CLOSE) -> Path:
    """Build a graph from x, let onnxruntime say its shape, and compare the values."""
    for outputs in (None, "known"):
        graph = Graph()
        result = build(graph, graph.input("x", shape))
        if outputs is None:
            graph.output(result, [f"d{i}" for i in range(len(shape))])  # type: ignore[misc]
            size = run_model(graph.save(folder / "open.onnx"), {"x": draw(0, *shape)})[0].shape
        else:
            graph.output(result, size)
    path = graph.save(folder / "m.onnx")
    for seed in SEEDS:
        feeds = {"x": draw(seed, *shape)}
        assert distance(run_natively(path, feeds)[0], run_model(path, feeds)[0]) < limit
    return path


#: Input's shape, filters [O, I / groups, ...], attributes.
CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "asymmetric pads": ((1, 5, 9, 7), (13, 5, 3, 3), {"pads": [0, 2, 1, 0]}),
    "dilated, strides differ": (
        (2, 4, 13, 11),
        (6, 4, 3, 2),
        {"dilations": [2, 3], "strides": [1, 2]},
    ),
    "same, lower": ((1, 3, 8, 7), (8, 3, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "same, upper": ((1, 3, 8, 7), (8, 3, 4, 3), {"auto_pad": "SAME_UPPER", "strides": [3, 2]}),
    "valid": ((1, 3, 8, 7), (8, 3, 3, 3), {"auto_pad": "VALID"}),
    "wide groups": ((1, 32, 7, 7), (48, 16, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "narrow groups": ((2, 12, 5, 6), (18, 2, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    "channel multiplier": ((1, 8, 9, 9), (16, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
    "depthwise, two tiles of columns": (
        (1, 16, 9, 14),
        (16, 1, 3, 3),
        {"group": 16, "pads": [1, 1, 1, 1]},
    ),
    "one by one, strided, padded": (
        (2, 7, 9, 9),
        (20, 7, 1, 1),
        {"strides": [2, 2], "pads": [1, 0, 0, 1]},
    ),
    "one dimension": ((2, 6, 31), (9, 6, 5), {"pads": [2, 2], "strides": [2]}),
    "one dimension, depthwise": ((1, 16, 29), (16, 1, 3), {"pads": [2, 0], "group": 16}),
    "three dimensions": (
        (1, 3, 6, 7, 5),
        (8, 3, 3, 2, 3),
        {"pads": [1, 0, 1, 1, 0, 1], "strides": [2, 1, 1]},
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_geometry_of_a_convolution_is_right(name: str, tmp_path: Path) -> None:
    shape, filters, attributes = CONVOLUTIONS[name]

    def build(graph: Graph, x: str) -> Any:
        weights = graph.weight(*filters), graph.weight(filters[0])
        return graph.add("Relu", graph.add("Conv", x, *weights, **attributes))

    compare(tmp_path, shape, build)


#: Batch, inputs, height, width, outputs, pads: one strip, several, tails in both axes, no padding.
MINIMAL = (
    (1, 32, 16, 16, 32, (1, 1, 1, 1)),
    (2, 48, 13, 19, 24, (1, 1, 1, 1)),
    (1, 64, 40, 24, 32, (1, 1, 1, 1)),
    (1, 32, 22, 17, 40, (0, 2, 0, 1)),
)


@pytest.mark.parametrize("case", MINIMAL, ids=str)
def test_minimal_filtering_keeps_its_error_bound(case: tuple[Any, ...], tmp_path: Path) -> None:
    batch, inputs, height, width, outputs, pads = case

    def build(graph: Graph, x: str) -> Any:
        weights = graph.weight(outputs, inputs, 3, 3), graph.weight(outputs)
        return graph.add("Relu", graph.add("Conv", x, *weights, pads=list(pads)))

    path = compare(tmp_path, (batch, inputs, height, width), build, limit=2e-5)
    for machine in ("x86_64", "aarch64", "arm"):
        module, refusals = lower_natively(path, describe_cpu(make_target(machine)))
        assert refusals == ()
        assert any("winograd" in variable.name_hint for variable in module.functions)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_filters_beyond_the_cache_are_read_panel_by_panel(dtype: type, tmp_path: Path) -> None:
    filters: np.ndarray = draw(0, 269, 160, 3, 3).astype(dtype)

    def build(graph: Graph, x: str) -> Any:
        weight = graph.constant(filters)
        if dtype is np.float16:
            weight = graph.add("Cast", weight, to=1)
        attributes: dict[str, Any] = {"pads": [1, 0, 1, 1], "strides": [1, 2]}
        return graph.add("Relu", graph.add("Conv", x, weight, graph.weight(269), **attributes))

    path = compare(tmp_path, (2, 160, 5, 15), build, limit=1e-5)
    cpu = describe_cpu(make_target("x86_64"))
    module, refusals = lower_natively(path, cpu)
    assert refusals == ()
    assert 160 * 9 * 269 * np.dtype(dtype).itemsize > cpu.l2 // 2
    convolution = next(str(f) for v, f in module.functions.items() if "conv" in v.name_hint)
    # The outer loop of the product, the last one that cores share, walks panels: not 2 x 5 rows.
    assert "T.parallel(T.int64(10))" not in convolution.split('sblock("product_init")')[0]


TRANSPOSED: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "kernel is stride": ((1, 6, 5, 7), (6, 5, 2, 2), {"strides": [2, 2]}),
    "overlapping": ((1, 4, 5, 6), (4, 7, 4, 3), {"strides": [2, 1], "pads": [1, 0, 1, 2]}),
    "output padding": (
        (2, 4, 5, 6),
        (4, 7, 3, 3),
        {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 1, 1, 1]},
    ),
    "dilated": ((1, 3, 6, 5), (3, 4, 3, 2), {"dilations": [2, 3], "strides": [2, 2]}),
    "groups": ((1, 8, 5, 5), (8, 3, 3, 3), {"group": 4, "strides": [2, 2]}),
    "depthwise": ((1, 8, 5, 4), (8, 1, 4, 4), {"group": 8, "strides": [2, 2], "pads": [1] * 4}),
    "sparse": ((1, 3, 4, 4), (3, 2, 1, 2), {"strides": [3, 2]}),
    "one dimension": ((1, 5, 9), (5, 3, 4), {"strides": [2], "pads": [1, 1]}),
    "given shape": ((1, 3, 4, 4), (3, 2, 3, 3), {"strides": [3, 2], "output_shape": [10, 8]}),
    "same": ((1, 3, 4, 5), (3, 2, 3, 4), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_every_geometry_of_a_transposed_convolution_is_right(name: str, tmp_path: Path) -> None:
    shape, filters, attributes = TRANSPOSED[name]
    outputs = filters[1] * attributes.get("group", 1)

    def build(graph: Graph, x: str) -> Any:
        return graph.add(
            "ConvTranspose", x, graph.weight(*filters), graph.weight(outputs), **attributes
        )

    compare(tmp_path, shape, build)


@pytest.mark.parametrize("kernel", [1, 3])
def test_filters_may_be_computed_by_the_model(kernel: int, tmp_path: Path) -> None:
    def build(graph: Graph, x: str) -> Any:
        pooled = graph.add("Relu", graph.add("GlobalAveragePool", x))
        factors = graph.add("Add", pooled, graph.weight(9, 5, kernel, kernel))
        return graph.add("Conv", x, factors, pads=[kernel // 2] * 4)

    compare(tmp_path, (1, 5, 8, 7), build)


POOLS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "maximum, ceil": (
        "MaxPool",
        (1, 6, 10, 9),
        {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1},
    ),
    "maximum, dilated": (
        "MaxPool",
        (2, 8, 11, 9),
        {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [1, 2, 0, 1]},
    ),
    "maximum, same": (
        "MaxPool",
        (1, 5, 7, 8),
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    ),
    "maximum of a row": ("MaxPool", (1, 8, 21), {"kernel_shape": [4], "strides": [3]}),
    "maximum of a volume": (
        "MaxPool",
        (1, 4, 6, 5, 7),
        {"kernel_shape": [3, 2, 2], "strides": [2, 1, 2], "pads": [1, 0, 0, 0, 1, 1]},
    ),
    "mean without padding": (
        "AveragePool",
        (1, 16, 9, 9),
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    ),
    "mean with padding, ceil": (
        "AveragePool",
        (1, 6, 8, 9),
        {
            "kernel_shape": [3, 3],
            "strides": [2, 2],
            "pads": [1, 1, 1, 1],
            "count_include_pad": 1,
            "ceil_mode": 1,
        },
    ),
    "mean without padding, ceil": (
        "AveragePool",
        (1, 6, 8, 9),
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1},
    ),
    "mean of a volume": (
        "AveragePool",
        (1, 4, 6, 5, 7),
        {"kernel_shape": [2, 3, 2], "pads": [1, 1, 0, 0, 1, 1]},
    ),
    "wide window": ("AveragePool", (1, 20, 20, 33), {"kernel_shape": [20, 33]}),
    "global maximum": ("GlobalMaxPool", (2, 12, 7, 5), {}),
}


@pytest.mark.parametrize("name", POOLS)
def test_every_pool_rounds_and_counts_as_onnxruntime(name: str, tmp_path: Path) -> None:
    operator, shape, attributes = POOLS[name]
    compare(tmp_path, shape, lambda graph, x: graph.add(operator, x, **attributes))


WHOLE, FRACTIONS = (2.0, 3.0), (0.6, 1.3)
ALIGNED: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
RESIZES: list[dict[str, Any]] = [
    {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    },
    {"mode": "nearest"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    {"mode": "cubic"},
    {"mode": "cubic", "exclude_outside": 1, "cubic_coeff_a": -0.5},
]


@pytest.mark.parametrize(
    ("attributes", "scales"),
    [*((each, scales) for each in RESIZES for scales in (WHOLE, FRACTIONS)), (ALIGNED, WHOLE)],
    ids=str,
)
def test_resizing_reads_what_onnxruntime_reads(
    attributes: dict[str, Any], scales: tuple[float, float], tmp_path: Path
) -> None:
    factors = np.array([1, 1, *scales], np.float32)

    def build(graph: Graph, x: str) -> Any:
        return graph.add("Resize", x, "", graph.constant(factors), **attributes)

    compare(tmp_path, (1, 5, 7, 6), build)


def test_aligned_corners_of_lengths_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    # onnxruntime and the standard's reference read different places.
    factors = np.array([1, 1, *FRACTIONS], np.float32)

    def build(graph: Graph, x: str) -> Any:
        return graph.add("Resize", x, "", graph.constant(factors), **ALIGNED)

    with pytest.raises(OperatorUnsupported, match="corners are aligned"):
        compare(tmp_path, (1, 5, 7, 6), build)


def test_normalization_by_constant_statistics_is_one_multiplication_and_addition(
    tmp_path: Path,
) -> None:
    def build(graph: Graph, x: str) -> Any:
        spread = graph.constant(np.linspace(0.5, 2, 6).astype(np.float32))
        return graph.add("BatchNormalization", x, *(graph.weight(6) for _ in range(3)), spread)

    compare(tmp_path, (2, 6, 5, 3), build)


def test_a_pyramid_of_images_is_transposed_at_its_input_only(tmp_path: Path) -> None:
    def build(graph: Graph, x: str) -> Any:
        x = graph.add("Conv", x, graph.weight(16, 6, 3, 3), pads=[1] * 4)
        small = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        factors = graph.constant(np.array([1, 1, 2, 2], np.float32))
        large = graph.add("Resize", small, "", factors, mode="nearest")
        both = graph.add("Concat", x, large, axis=1)
        first, second = graph.add("Split", both, outputs=2, axis=1, num_outputs=2)
        ends = [graph.constant(np.array(v)) for v in ([0, 4], [16, 16], [2, 1])]
        cut = graph.add("Slice", graph.add("Add", first, second), *ends)
        border = graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
        padded = graph.add("Pad", cut, border)
        scores = graph.add("Conv", padded, graph.weight(8, 12, 3, 3))
        return graph.add("GlobalAveragePool", scores)

    path = compare(tmp_path, (1, 6, 16, 16), build)
    module, _ = lower_natively(path)
    names = [variable.name_hint for variable in module.functions]
    assert sum("transpose" in name for name in names) == 1


@pytest.mark.parametrize("pads", [[1, 0, 2, 1], [0, 0, 0, 0]])
def test_an_image_of_few_channels_is_convolved_from_where_it_is(
    pads: list[int], tmp_path: Path
) -> None:
    def build(graph: Graph, x: str) -> Any:
        x = graph.add("Conv", x, graph.weight(16, 3, 3, 3), strides=[2, 2], pads=pads)
        return graph.add("GlobalAveragePool", graph.add("Relu", x))

    path = compare(tmp_path, (2, 3, 19, 21), build)
    module, _ = lower_natively(path)
    assert not any("transpose" in variable.name_hint for variable in module.functions)
