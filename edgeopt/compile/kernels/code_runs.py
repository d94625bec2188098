"""Runs of codes: what a window reads of one line of an image, taps and channels alike.

It lies together in memory, so that whole vectors of codes are read from where they are. What a run
takes beyond the window, up to a whole instruction, meets zeros.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from edgeopt.compile.kernels import tile
from edgeopt.compile.kernels.conv import Window
from edgeopt.compile.kernels.scheduling import mark

#: Codes that are moved at a time, at most: AVX-512's bytes.
_MOVED = 64


@dataclass(frozen=True, slots=True)
class Runs:
    """The runs of a window, each rounded up to whole steps of so many codes."""

    window: Window
    step: int
    #: Whether a step may hold several runs, where they are short.
    shares: bool = False

    @property
    def joined(self) -> bool:
        """Whether the taps of a row are read as one run with their channels."""
        return self.window.dilation[1] == 1 and self.window.groups == 1

    @property
    def taps(self) -> tuple[int, int]:
        """Runs that a window reads: rows, and taps along a row."""
        rows, columns = self.window.kernel
        return rows, 1 if self.joined else columns

    @property
    def codes(self) -> int:
        """Codes of one run that the window has."""
        return self.window.inputs * (self.window.kernel[1] if self.joined else 1)

    @property
    def together(self) -> int:
        """Runs of neighbouring rows that lie together in one step."""
        most = min(self.taps[0], self.step // self.codes) if self.joined else 1
        return max(1, most) if self.shares else 1

    @property
    def length(self) -> int:
        """Codes of one run that are read, or of those that lie together."""
        return tile.round_up(self.codes, self.step)

    @property
    def depth(self) -> int:
        """Codes of all runs of a window."""
        return -(-self.taps[0] // self.together) * self.taps[1] * self.length

    @property
    def ahead(self) -> int:
        """Columns in front of the padded image: what lies together is read as from its first run.

        All of a step's runs are loaded as one vector each, of which each gives its own part.
        """
        return -(-(self.together - 1) * self.codes // self.window.shape[3])

    @property
    def columns(self) -> int:
        """Columns of the padded image, with those that only runs beyond windows read."""
        window = self.window
        pixels = window.shape[2] + window.pads[1] + window.pads[3]
        last = (window.output[1] - 1) * window.strides[1]
        last += (self.taps[1] - 1) * window.dilation[1]
        end = last * window.shape[3] + (window.groups - 1) * window.inputs + self.length
        return self.ahead + max(pixels, -(-end // window.shape[3]))

    @property
    def copied(self) -> bool:
        """Whether the image must be copied: padded, or lengthened."""
        return any(self.window.pads) or self.columns > self.window.shape[2]

    def read(
        self, image: Callable[..., tirx.Expr], at: tuple[tirx.Expr, ...], k: tirx.Expr
    ) -> tirx.Expr:
        """Read code k of what a window sums.

        Given are the batch, the output's row and column, and the group of channels if there are
        several.
        """
        batch, row, column, *group = at
        number, within = tirx.floordiv(k, self.length), tirx.floormod(k, self.length)
        if self.together == 1:
            across = self.taps[1]
            tap = tirx.floordiv(number, across), tirx.floormod(number, across)
            y, start = self.place((row, column), tap, group[0] if group else 0)
            return image(batch, y, start + within)
        still = tirx.const(0, "int32")
        code = None
        for part in reversed(range(self.together)):
            # Beyond the last row are zeros in the filters.
            tap = tirx.min(number * self.together + part, self.taps[0] - 1)
            y, start = self.place((row, column), (tap, still), 0)
            each = image(batch, y, start + within - part * self.codes)
            fits = within < (part + 1) * self.codes
            code = each if code is None else tirx.Select(fits, each, code)
        assert code is not None
        return code

    def place(
        self,
        at: tuple[tirx.Expr, tirx.Expr],
        tap: tuple[tirx.Expr, tirx.Expr],
        group: tirx.Expr | int,
    ) -> tuple[tirx.Expr, tirx.Expr]:
        """Find where a run begins in the lines of the padded image: its line and its place in it.

        Given are the output's row and column, the run's two taps, and the group of channels.
        """
        y, column = self.window.at(*at, tap)
        start = (column + self.ahead) * self.window.shape[3]
        return y, start if self.window.groups == 1 else start + group * self.window.inputs


def pad_filters(filters: np.ndarray, runs: Runs) -> np.ndarray:
    """Lay out int8 [KH, KW, I, O] as the matrix [depth, O] that runs are multiplied by."""
    rows, columns = runs.taps
    outputs = filters.shape[3]
    split = filters.reshape(rows * columns, -1, outputs)
    if runs.together > 1:
        steps = -(-rows // runs.together)
        whole = np.zeros((steps * runs.together, runs.codes, outputs), np.int8)
        whole[:rows] = split
        split = whole.reshape(steps, -1, outputs)
    padded = np.zeros((len(split), runs.length, outputs), np.int8)
    padded[:, : split.shape[1]] = split
    return padded.reshape(-1, outputs)


def pad_lines(
    runs: Runs, x: te.Tensor, zero: int, convert: Callable[[tirx.Expr], tirx.Expr]
) -> te.Tensor:
    """Surround lines [N, H, W * C] by the zero point's code, and convert all codes."""
    window = runs.window
    batch, height, width, channels = window.shape
    top, left, bottom, _ = window.pads
    left += runs.ahead

    def element(b: tirx.Expr, y: tirx.Expr, at: tirx.Expr) -> tirx.Expr:
        column = tirx.floordiv(at, channels)
        inside = tirx.all(y >= top, y < height + top, column >= left, column < width + left)
        code = x(b, y - top, at - left * channels)
        return convert(tirx.if_then_else(inside, code, tirx.const(zero, x.dtype)))

    shape = (batch, height + top + bottom, runs.columns * channels)
    marks = mark(role="padded", lanes=int(np.gcd(channels, _MOVED)))
    return te.compute(shape, element, name="padded", attrs=marks)
