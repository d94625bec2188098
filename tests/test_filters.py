import pytest

from edgeopt.filters import is_transformed


@pytest.mark.parametrize(
    ("lanes", "inputs", "outputs", "image", "expected"),
    [
        (4, 16, 32, (14, 14), True),
        # Not whole vectors of inputs, nor of outputs.
        (16, 24, 32, (14, 14), False),
        (4, 16, 20, (14, 14), False),
        # Nine tiles of 4 x 4 outputs.
        (4, 64, 64, (12, 12), False),
        # 25 tiles, most of whose last row and column lies beyond the image.
        (4, 16, 16, (17, 17), False),
        # Few channels: the transforms take more than is saved.
        (4, 4, 8, (56, 56), False),
    ],
)
def test_filters_are_transformed_where_that_saves_multiplications(
    lanes: int, inputs: int, outputs: int, image: tuple[int, int], expected: bool
) -> None:
    assert is_transformed(lanes, inputs, outputs, image) is expected
