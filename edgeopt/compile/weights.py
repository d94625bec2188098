r"""The weights file: what the device program maps into memory instead of copying.

Layout, little endian: "EDGEWT2\0", u64 count, then one record of 112 bytes per array, then the
data. The arrays are the trailing parameters of the compiled main function, in order.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.errors import ConfigError

MAGIC = b"EDGEWT2\0"
#: kAllocAlignment of tvm/runtime/device_api.h: kernels load whole vectors.
ALIGNMENT = 64
#: Advice is given per page, and pages are 4 KiB, or 16 KiB on a Raspberry Pi 5.
RANDOM_ALIGNMENT = 16384
#: The record's flag for arrays read in few, scattered places: embedding tables.
FLAG_RANDOM = 1
MAX_RANK = 8

#: DLPack's type codes (dlpack.h: DLDataTypeCode) by numpy's kinds.
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_KINDS = {code: kind for kind, code in _CODES.items()}
_HEADER = struct.Struct("<8sQ")
#: Type code, bits, lanes, rank, shape, offset, size, flags, zero, reserved.
_RECORD = struct.Struct("<BBHI8qQQII16x")


@dataclass(frozen=True, slots=True)
class Record:
    """One array of a weights file, by its place."""

    #: As numpy spells it: "float32".
    dtype: str
    shape: tuple[int, ...]
    #: From the file's start, and without padding; in bytes.
    offset: int
    size: int
    random: bool


def _align(position: int, unit: int) -> int:
    return -(-position // unit) * unit


def _describe(array: NDArray[np.generic], offset: int, random: bool) -> Record:
    if array.dtype.kind not in _CODES or array.dtype.itemsize > 8 or array.ndim > MAX_RANK:
        raise ConfigError(
            f"a weight of type {array.dtype} and shape {array.shape} cannot be stored",
            why=f"the weights file holds bool, int, uint and float with up to {MAX_RANK} axes",
        )
    return Record(array.dtype.name, array.shape, offset, array.nbytes, random)


def _pack(record: Record) -> bytes:
    dtype = np.dtype(record.dtype)
    shape = (*record.shape, *(0,) * (MAX_RANK - len(record.shape)))
    flags = FLAG_RANDOM if record.random else 0
    return _RECORD.pack(
        _CODES[dtype.kind],
        8 * dtype.itemsize,
        1,
        len(record.shape),
        *shape,
        record.offset,
        record.size,
        flags,
        0,
    )


def _lay_out(arrays: Sequence[NDArray[np.generic]], random: frozenset[int]) -> list[Record]:
    records: list[Record] = []
    position = _HEADER.size + _RECORD.size * len(arrays)
    for index, array in enumerate(arrays):
        unit = RANDOM_ALIGNMENT if index in random else ALIGNMENT
        record = _describe(array, _align(position, unit), index in random)
        records.append(record)
        position = _align(record.offset + record.size, unit)
    return records


def write_weights(
    path: Path, arrays: Sequence[NDArray[np.generic]], random: frozenset[int] = frozenset()
) -> None:
    """Write arrays, of which those at the indices in random are read at scattered places.

    The same arrays give the same bytes. Raises ConfigError for a type that the format lacks.
    """
    assert all(0 <= index < len(arrays) for index in random)
    records = _lay_out(arrays, random)
    with path.open("wb") as file:
        file.write(_HEADER.pack(MAGIC, len(arrays)))
        for record in records:
            file.write(_pack(record))
        for record, array in zip(records, arrays, strict=True):
            file.write(b"\0" * (record.offset - file.tell()))
            # Little endian whatever this machine is; ascontiguousarray gives scalars an axis.
            stored = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            file.write(stored.tobytes())
            if record.random:
                file.write(b"\0" * (_align(file.tell(), RANDOM_ALIGNMENT) - file.tell()))


def _unpack(data: bytes) -> Record:
    code, bits, _, rank, *rest = _RECORD.unpack(data)
    shape, (offset, size, flags, _) = rest[:MAX_RANK], rest[MAX_RANK:]
    dtype = "bool" if _KINDS[code] == "b" else np.dtype(f"{_KINDS[code]}{bits // 8}").name
    return Record(dtype, tuple(shape[:rank]), offset, size, bool(flags & FLAG_RANDOM))


def read_index(path: Path) -> tuple[Record, ...]:
    """Read what a weights file holds and where; raises ConfigError when it is not one."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) != _HEADER.size or not header.startswith(MAGIC):
            raise ConfigError(f"{path} is not a weights file", fix="compile the model again")
        _, count = _HEADER.unpack(header)
        table = file.read(_RECORD.size * count)
    if len(table) != _RECORD.size * count:
        raise ConfigError(f"{path} ends within its index", fix="compile the model again")
    starts = range(0, len(table), _RECORD.size)
    return tuple(_unpack(table[start : start + _RECORD.size]) for start in starts)
