"""A model's graph without the values of its large tensors, which are most of its file.

Protobuf's wire format (https://protobuf.dev/programming-guides/encoding/) says of each field how
long it is: what is not wanted is stepped over instead of being read.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from onnx import ModelProto

from edgeopt.errors import ModelError

#: Fields of onnx.proto: ModelProto.graph, GraphProto.initializer and TensorProto.raw_data.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
#: Values of at most so many bytes are kept: shapes and axes are among them.
SMALL = 4096
#: Wire types: a number of variable length, 8 bytes, bytes with their length ahead, 4 bytes.
_VARIABLE, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


def skim_model(path: Path) -> ModelProto:
    """Read a model without values of more than SMALL bytes: those tensors keep type and shape."""
    if not path.stat().st_size:
        return ModelProto()
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as file:
        content = _without_values(file, 0, len(file), (_GRAPH, _INITIALIZER, _RAW_DATA))
    made = ModelProto()
    made.ParseFromString(content)
    return made


def _without_values(file: mmap.mmap, start: int, end: int, way: tuple[int, ...]) -> bytes:
    """Copy a message, but for the large values at the end of a way through its fields."""
    kept = []
    for number, first, body, after in _fields(file, start, end):
        if number != way[0]:
            kept.append(file[first:after])
        elif len(way) > 1:
            inner = _without_values(file, body, after, way[1:])
            kept += [_written(number << 3 | _BYTES), _written(len(inner)), inner]
        elif after - body <= SMALL:
            kept.append(file[first:after])
    return b"".join(kept)


def _fields(file: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of a message: number, where it begins, where its body does, and its end."""
    at = start
    while at < end:
        tag, body = _number(file, at, end)
        kind = tag & 7
        if kind == _BYTES:
            size, body = _number(file, body, end)
            after = body + size
        elif kind == _VARIABLE:
            after = _number(file, body, end)[1]
        elif kind in (_EIGHT, _FOUR):
            after = body + (8 if kind == _EIGHT else 4)
        else:
            raise _broken()
        if after > end:
            raise _broken()
        yield tag >> 3, at, body, after
        at = after


def _number(file: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte, the lowest first; return it and where it ends."""
    value = shift = 0
    while at < end:
        byte = file[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise _broken()


def _written(value: int) -> bytes:
    """Write a number as _number reads it."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def _broken() -> ModelError:
    return ModelError(
        "the model cannot be read", why="its file is no protobuf message", fix="export it again"
    )
