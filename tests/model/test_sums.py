import onnx
import pytest

from edgeopt.model.sums import count_sums

SHAPES = {
    "x": (1, 8, 16),
    "w": (16, 4),
    "y": (1, 8, 4),
    "tall": (16, 8),
    "flat": (8, 4),
    "image": (1, 6, 10, 10),
    "filters": (12, 3, 3, 3),
    "made": (1, 12, 8, 8),
    "back": (6, 5, 2, 2),
    "steps": (7, 1, 16),
    "gates": (1, 32, 16),
    "again": (1, 32, 8),
}


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "given", "sums"),
    [
        ("MatMul", ("x", "w"), "y", {}, 8 * 4 * 16),
        ("MatMulInteger", ("x", "w"), "y", {}, 8 * 4 * 16),
        ("Gemm", ("tall", "w"), "flat", {"transA": 1}, 8 * 4 * 16),
        ("QLinearMatMul", ("x", "s", "z", "w", "s", "z", "s", "z"), "y", {}, 8 * 4 * 16),
        # Of two groups, each output reads three channels.
        ("Conv", ("image", "filters"), "made", {"group": 2}, 12 * 8 * 8 * 3 * 3 * 3),
        ("ConvTranspose", ("image", "back"), "y", {}, 6 * 10 * 10 * 5 * 2 * 2),
        ("GRU", ("steps", "gates", "again"), "y", {}, 7 * 32 * (16 + 8)),
        ("Add", ("x", "x"), "y", {}, 0),
        ("MatMul", ("unknown", "w"), "y", {}, 0),
        ("MatMul", ("x", "w"), "unknown", {}, 0),
    ],
)
def test_a_node_sums_one_product_for_each_value_of_each_axis(
    operator: str, inputs: tuple[str, ...], output: str, given: dict[str, int], sums: int
) -> None:
    node = onnx.helper.make_node(operator, inputs, [output], **given)  # type: ignore[arg-type]
    assert count_sums(node, SHAPES) == sums
