"""Cut files into chunks where their content says so, and plan a file from chunks that are there.

The boundary is a gear hash over the last 32 bytes (Xia et al., "Ddelta", Performance Evaluation 79,
2014): bytes put in or taken out move the boundaries near them and no others. Nothing here is
trusted: what is put together of chunks is hashed as a whole before it gets its name.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

#: Bytes: a smaller file is sent whole.
SMALLEST_FILE = 1 << 18
#: A list of more lines is not read: chunks of 500 MB.
MOST_CHUNKS = 32_768
#: Pieces that are put together in one command of a board's shell.
_MOST_PIECES = 1000
#: A boundary is where so many high bits are zero: chunks of 16 KiB on average, in these bounds.
_BITS = 14
_LEAST, _MOST = 1 << 12, 1 << 16
#: Bytes: a 32-bit hash forgets what was shifted out of it.
_WINDOW = 32
_BLOCK = 1 << 20
_LINE = re.compile(r"([0-9a-f]{16}) ([0-9]{1,6})")

_GEAR = np.array(
    [int.from_bytes(hashlib.sha256(bytes([each])).digest()[:4]) for each in range(256)],
    dtype=np.uint32,
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where a chunk begins in its file, and its size in bytes; its name is half of a SHA-256."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of bytes: of an object on the board, or of what is sent (source "")."""

    source: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a file is put together, and the ranges [begin, end) of it that have to be sent."""

    pieces: tuple[Piece, ...]
    sent: tuple[tuple[int, int], ...]


def cut_file(path: Path) -> tuple[Chunk, ...]:
    """Cut a file; the same content has the same chunks wherever it stands."""
    chunks = []
    with path.open("rb") as stream:
        begin = 0
        for end in _boundaries(path):
            data = stream.read(end - begin)
            chunks.append(Chunk(hashlib.sha256(data).hexdigest()[:16], begin, len(data)))
            begin = end
    return tuple(chunks)


def _boundaries(path: Path) -> Iterator[int]:
    """Yield the end of every chunk, the last one's included."""
    begin, size = 0, path.stat().st_size
    for place in _candidates(path):
        while place - begin > _MOST:
            begin += _MOST
            yield begin
        if place - begin >= _LEAST:
            begin = place
            yield begin
    while begin < size:
        begin = min(begin + _MOST, size)
        yield begin


def _candidates(path: Path) -> Iterator[int]:
    before = np.zeros(_WINDOW - 1, dtype=np.uint8)
    done = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            data = np.concatenate([before, np.frombuffer(block, dtype=np.uint8)])
            marks = _hashes(data)[_WINDOW - 1 :] >> np.uint32(32 - _BITS) == 0
            for place in np.flatnonzero(marks):
                yield done + int(place) + 1
            before, done = data[-(_WINDOW - 1) :], done + len(block)


def _hashes(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the hash [N] of the 32 bytes up to each one: sum of gear[byte] << distance."""
    hashes: NDArray[np.uint32] = _GEAR[data]
    width = 1
    while width < _WINDOW:
        doubled = hashes.copy()
        doubled[width:] += hashes[:-width] << np.uint32(width)
        hashes, width = doubled, 2 * width
    return hashes


def write_list(chunks: Iterable[Chunk]) -> str:
    """Write one line per chunk, as the board keeps it beside the object."""
    return "".join(f"{each.name} {each.size}\n" for each in chunks)


def parse_list(lines: Sequence[str]) -> tuple[Chunk, ...]:
    """Read a list that a board kept; from the first line that is none on, nothing is believed."""
    chunks: list[Chunk] = []
    offset = 0
    for line in lines[:MOST_CHUNKS]:
        match = _LINE.fullmatch(line)
        if match is None:
            break
        chunks.append(Chunk(match[1], offset, int(match[2])))
        offset += int(match[2])
    return tuple(chunks)


def plan_pieces(chunks: Sequence[Chunk], known: Mapping[str, Sequence[Chunk]]) -> Recipe | None:
    """Plan a file from the chunks of objects, by their SHA-256; None when it is not worth it."""
    where = {
        (chunk.name, chunk.size): Piece(source, chunk.offset, chunk.size)
        for source, listed in known.items()
        for chunk in listed
    }
    pieces: list[Piece] = []
    ranges: list[tuple[int, int]] = []
    sent = 0
    for chunk in chunks:
        found = where.get((chunk.name, chunk.size))
        if found is None:
            found = Piece("", sent, chunk.size)
            sent += chunk.size
            _extend(ranges, chunk)
        last = pieces[-1] if pieces else None
        if last and last.source == found.source and last.offset + last.size == found.offset:
            pieces[-1] = Piece(last.source, last.offset, last.size + found.size)
        else:
            pieces.append(found)
    total = sum(each.size for each in chunks)
    if not chunks or len(pieces) > _MOST_PIECES or 4 * sent > 3 * total:
        return None
    return Recipe(tuple(pieces), tuple(ranges))


def _extend(ranges: list[tuple[int, int]], chunk: Chunk) -> None:
    end = chunk.offset + chunk.size
    if ranges and ranges[-1][1] == chunk.offset:
        ranges[-1] = (ranges[-1][0], end)
    else:
        ranges.append((chunk.offset, end))
