"""Filters that the compiler stores transformed: which, is known before anything is compiled.

3x3 convolutions of stride 1 by Winograd's minimal filtering F(4x4, 3x3), as edgeopt.compile's
kernels do them: 36 products make the 16 outputs that take 144 in the plain sum, of filters that
take 36 values where they had 9 (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", 2015).
"""

#: Outputs and inputs of a tile along one axis, and taps of the filters.
STEP, TILE, TAPS = 4, 6, 3
#: Tiles below which transformed filters are read for too few products.
_FEWEST_TILES = 12
#: Multiply-adds that transforming one channel of a tile costs, there and back.
_TRANSFORM = 300
#: Fewest outputs of one vector.
_FEWEST_LANES = 8
#: Share of the plain sum's multiply-adds from which the transforms are worth their traffic.
_WORTH = 0.6


def is_transformed(lanes: int, inputs: int, outputs: int, image: tuple[int, int]) -> bool:
    """Tell whether float32 filters [outputs, inputs, 3, 3] of stride 1 are stored transformed.

    lanes: of float32 in a vector. image: rows and columns of the result.
    """
    if inputs % lanes or outputs % _FEWEST_LANES:
        return False
    rows, columns = image
    tiles = -(-rows // STEP) * -(-columns // STEP)
    cost = tiles * (TILE**2 * inputs * outputs + _TRANSFORM * (inputs + outputs))
    plain = rows * columns * TAPS**2 * inputs * outputs
    return tiles >= _FEWEST_TILES and cost <= _WORTH * plain
