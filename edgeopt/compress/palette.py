"""codebook-weights: each value one of a few numbers, of the whole weight or of some channels.

The numbers are the centres of k-means in one dimension over the values (Han et al. 2015, Deep
Compression, arXiv 1510.00149, sec. 3), or lie in even pieces. There are no scales: 256 numbers take
8 bits a value and a kilobyte. Of MiniLM-L6's matrices they lose as much as int8-weights with
its scales do, and a third less with numbers for 96 channels each; but kernels look each one up.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from edgeopt.artifact import Choice
from edgeopt.compress.blocks import UNSIGNED
from edgeopt.compress.codes import Floats
from edgeopt.compress.edit import Edit
from edgeopt.compress.levels import spread_levels
from edgeopt.model.graph import Weight

#: Values that numbers are found on at most.
_MOST_VALUES = 1 << 18


@dataclass(frozen=True, slots=True)
class Palette:
    """Codes [N, K], and the numbers [groups, entries] that they stand for, rising."""

    codes: npt.NDArray[np.uint8]
    numbers: Floats


def encode_palette(rows: Floats, choice: Choice) -> Palette:
    """Return codes of a matrix [N, K]; groups are of so many rows, the last one of what is left."""
    assert choice.entries is not None
    size = choice.channels or len(rows)
    starts = range(0, len(rows), size)
    codes = np.empty(rows.shape, np.uint8)
    numbers = np.empty((len(starts), choice.entries), np.float32)
    for place, start in enumerate(starts):
        part = rows[start : start + size]
        values = part.reshape(-1).astype(np.float64)
        values = values[:: max(1, values.size // _MOST_VALUES)]
        found = spread_levels(values, np.ones_like(values), choice.entries, choice.numbers.levels)
        found = found.astype(np.float32)
        own = np.searchsorted((found[1:] + found[:-1]) / 2, part)
        found = _keep_zeros(found, own, part)
        numbers[place] = found
        codes[start : start + size] = own
    return Palette(codes, numbers)


def _keep_zeros(numbers: Floats, codes: npt.NDArray[np.intp], values: Floats) -> Floats:
    """Return zero for a number of which most values are: those of a channel that is nothing."""
    none = np.bincount(codes[values == 0], minlength=len(numbers))
    every = np.bincount(codes.reshape(-1), minlength=len(numbers))
    kept: Floats = np.where(2 * none > every, 0, numbers).astype(np.float32)
    return kept


def decode_palette(palette: Palette, channels: int | None) -> Floats:
    """Return the values [N, K] that codes stand for."""
    groups = np.arange(len(palette.codes)) // (channels or len(palette.codes))
    values: Floats = palette.numbers[groups[:, None], palette.codes]
    return values


def store_palette(edit: Edit, weight: Weight, palette: Palette, *, channels: int | None) -> None:
    """Store codes in 2, 4 or 8 bits, and put a Gather of their numbers before the readers."""
    first, name = edit.readers(weight.name)[0], weight.name
    bits = next(each for each in sorted(UNSIGNED) if palette.numbers.shape[1] <= 1 << each)
    turned = weight.axis == 1
    codes = palette.codes.T if turned else palette.codes
    stored = edit.store(f"{name}.uint{bits}", codes.astype(UNSIGNED[bits]))
    # onnxruntime's Gather takes places of 32 bits at least.
    places = edit.insert(first, "Cast", (stored,), f"{name}.numbers", to=TensorProto.INT32)
    groups, entries = palette.numbers.shape
    if groups > 1:
        assert channels is not None
        starts = np.arange(len(palette.codes), dtype=np.int32) // channels * entries
        shape = (1, -1) if turned else (-1, 1)
        begin = edit.store(f"{name}.first", starts.reshape(shape))
        places = edit.insert(first, "Add", (places, begin), f"{name}.places")
    # In float32, as kernels read them.
    book = edit.store(f"{name}.codebook", palette.numbers.reshape(-1))
    edit.insert(first, "Gather", (book, places), name, axis=0)
    edit.forget(weight)
