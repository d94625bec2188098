"""Resizing of [batch, ..., channels] by tables: every position is a weighted sum of a few others.

sources and weights are [positions, taps] for each spatial axis; a single tap weighs one.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from tvm import te, tirx


def define_resize(tables: Sequence[np.ndarray]) -> Callable[..., te.Tensor]:
    """Make the TE definition: the image, then sources and weights of every axis."""
    lengths = [table.shape[0] for table in tables[::2]]
    taps = [range(table.shape[1]) for table in tables[::2]]

    def define(x: te.Tensor, *operands: te.Tensor) -> te.Tensor:
        sources, weights = operands[::2], operands[1::2]

        def element(*at: tirx.Expr) -> tirx.Expr:
            batch, *place, channel = at
            total: tirx.Expr | None = None
            for chosen in itertools.product(*taps):
                index = [
                    source(position, tap)
                    for source, position, tap in zip(sources, place, chosen, strict=True)
                ]
                value = x(batch, *index, channel)
                for axis, (position, tap) in enumerate(zip(place, chosen, strict=True)):
                    if len(taps[axis]) > 1:
                        value = value * weights[axis](position, tap)
                total = value if total is None else total + value
            assert total is not None
            return total

        return te.compute((x.shape[0], *lengths, x.shape[-1]), element, name="resize")

    return define
