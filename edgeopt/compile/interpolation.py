"""ONNX Resize in numbers: for each axis, which elements each position reads, and their weights.

The formulas are those of the operator's specification (onnx.ai, Resize, opset 19). Coordinates are
float32 as in onnxruntime, so that positions that fall between two elements round as there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeopt.compile.operators.node import Unsupported

#: Sources int32 [positions, taps] and weights float32 [positions, taps] of one axis.
Table = tuple[np.ndarray, np.ndarray]

_MODES = ("nearest", "linear", "cubic")
_COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
)

#: How far from a whole number a length may be by rounding of the scales.
_WHOLE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a Resize asks for."""

    shape: tuple[int, ...]
    #: Per axis, 1 where nothing is resized.
    scales: tuple[float, ...]
    #: Per axis, when the operator was given sizes.
    sizes: tuple[int, ...] | None
    mode: str
    coordinates: str
    rounding: str
    cubic: float
    exclude_outside: bool
    antialias: bool


def read_request(
    shape: tuple[int, ...],
    attributes: Mapping[str, object],
    values: Sequence[np.ndarray | None],
) -> Request | None:
    """Read a Resize of constant scales or sizes; None for one that crops by a region."""
    mode = _text(attributes, "mode", "nearest")
    coordinates = _text(attributes, "coordinate_transformation_mode", "half_pixel")
    _, scales, sizes = values
    if mode not in _MODES or coordinates not in _COORDINATES:
        return None
    given = [each for each in (scales, sizes) if each is not None and each.size]
    if len(given) != 1:
        return None
    rank = len(shape)
    chosen = attributes.get("axes", range(rank))
    assert isinstance(chosen, Sequence)
    factors, lengths = [1.0] * rank, list(shape)
    for axis, number in zip(chosen, given[0], strict=True):
        place = int(axis) % rank
        if given[0] is scales:
            factors[place] = float(number)
        else:
            lengths[place] = int(number)
    by_size = given[0] is sizes
    if coordinates == "align_corners" and not by_size:
        _check_corners(shape, factors)
    if by_size:
        policy = _text(attributes, "keep_aspect_ratio_policy", "stretch")
        places = [int(axis) % rank for axis in chosen]
        lengths = _keep_ratio(shape, lengths, places, policy)
        factors = [new / old for new, old in zip(lengths, shape, strict=True)]
    return Request(
        shape=shape,
        scales=tuple(factors),
        sizes=tuple(lengths) if by_size else None,
        mode=mode,
        coordinates=coordinates,
        rounding=_text(attributes, "nearest_mode", "round_prefer_floor"),
        cubic=float(str(attributes.get("cubic_coeff_a", -0.75))),
        exclude_outside=bool(attributes.get("exclude_outside", 0)),
        antialias=bool(attributes.get("antialias", 0)),
    )


def _check_corners(shape: Sequence[int], factors: Sequence[float]) -> None:
    """Refuse lengths with fractions, whose last corner the standard puts outside of the image.

    onnxruntime rounds them first.
    """
    lengths = [size * np.float32(factor) for size, factor in zip(shape, factors, strict=True)]
    if any(abs(length - round(float(length))) > _WHOLE for length in lengths):
        raise Unsupported("its corners are aligned, but scales give lengths that are not whole")


def _text(attributes: Mapping[str, object], name: str, default: str) -> str:
    value = attributes.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _keep_ratio(
    shape: Sequence[int], lengths: Sequence[int], places: Sequence[int], policy: str
) -> list[int]:
    if policy == "stretch":
        return list(lengths)
    ratios = [lengths[place] / shape[place] for place in places]
    factor = min(ratios) if policy == "not_larger" else max(ratios)
    return [
        int(np.floor(factor * size + 0.5)) if place in places else size
        for place, size in enumerate(shape)
    ]


def make_tables(request: Request) -> tuple[tuple[int, ...], list[Table]]:
    """Compute the result's shape, and the sources and weights of every axis."""
    outputs = request.sizes or tuple(
        int(np.floor(size * np.float32(scale)))
        for size, scale in zip(request.shape, request.scales, strict=True)
    )
    tables = [_axis_table(request, axis, outputs[axis]) for axis in range(len(outputs))]
    return outputs, tables


def _axis_table(request: Request, axis: int, length: int) -> Table:
    size, scale = request.shape[axis], request.scales[axis]
    if scale == 1.0 and length == size:
        return np.arange(size, dtype=np.int32)[:, None], np.ones((size, 1), np.float32)
    place = _coordinates(request.coordinates, size, length, np.float32(scale))
    if request.mode == "nearest":
        source = np.clip(_nearest(place, request.rounding), 0, size - 1)
        return source.astype(np.int32)[:, None], np.ones((length, 1), np.float32)
    first = np.floor(place)
    offsets, weights = _weights(request, (place - first).astype(np.float64), scale)
    sources = first.astype(np.int64)[:, None] + offsets[None]
    if request.exclude_outside:
        weights = np.where((sources >= 0) & (sources < size), weights, 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
    return np.clip(sources, 0, size - 1).astype(np.int32), weights.astype(np.float32)


def _coordinates(mode: str, size: int, length: int, scale: np.float32) -> np.ndarray:
    x = np.arange(length, dtype=np.float32)
    half = np.float32(0.5)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * np.float32(size - 1) / np.float32(max(length - 1, 1))
    if mode == "pytorch_half_pixel" and length == 1:
        return np.zeros(1, np.float32)
    place = (x + half) / scale - half
    if mode == "half_pixel_symmetric":
        adjustment = np.float32(length) / (scale * np.float32(size))
        place = place + np.float32(size) / np.float32(2) * (np.float32(1) - adjustment)
    return place


def _nearest(place: np.ndarray, rounding: str) -> np.ndarray:
    functions = {
        "floor": lambda x: np.floor(x),
        "ceil": lambda x: np.ceil(x),
        "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
        "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    }
    nearest: np.ndarray = functions[rounding](place)
    return nearest


def _weights(request: Request, part: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Weigh the neighbours of a position by its fraction; offsets count from its floor."""
    reach = 1 if request.mode == "linear" else 2
    narrow = min(scale, 1.0) if request.antialias else 1.0
    if narrow < 1.0:
        start = int(np.floor(-reach / narrow) + 1)
        offsets = np.arange(start, start + 2 * (1 - start))
    else:
        offsets = np.arange(1 - reach, reach + 1)
    distance = np.abs(offsets[None] - part[:, None]) * narrow
    weights = 1 - distance if reach == 1 else _cubic(distance, request.cubic)
    weights = np.where(distance < reach, weights, 0.0)
    if narrow < 1.0:
        weights = weights / weights.sum(axis=1, keepdims=True)
    return offsets, weights


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Weigh by Keys' cubic convolution kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    result: np.ndarray = np.where(distance <= 1, near, far)
    return result
