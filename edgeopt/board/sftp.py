"""The part of SFTP (version 3) that moves one file, with the status of every write looked at.

paramiko's own client throws the replies to pipelined writes away, so that an upload onto a full
disk succeeds. Format: draft-ietf-secsh-filexfer-02; extensions: OpenSSH's PROTOCOL, section 4.
"""

import contextlib
import itertools
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.errors import BoardIncompatible, BoardUnreachable

_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT, _FSETSTAT = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    10,
)
_STATUS, _HANDLE, _DATA, _ATTRS, _EXTENDED = 101, 102, 103, 105, 200
_FLAG_READ, _FLAG_WRITE, _FLAG_CREATE, _FLAG_TRUNCATE = 1, 2, 8, 16
_HAS_SIZE, _HAS_OWNER, _HAS_MODE = 1, 2, 4
_OK, _EOF = 0, 1
_REASONS = {2: "no such file or folder", 3: "permission denied", 4: "failure"}

#: Every server takes messages of this much data (the draft, section 3).
_CHUNK = 32768
#: Unanswered messages: as much as OpenSSH's window of 2 MiB holds.
_IN_FLIGHT = 64
#: An answer is a status, a handle, attributes or one chunk.
_LONGEST = 1 << 18

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class _Stat:
    size: int
    mode: int


class Sftp:
    """One SFTP session over a channel. Every method raises BoardIncompatible when refused.

    The channel's reads and writes wait until deadline (time.monotonic()), then BoardUnreachable.
    """

    def __init__(self, channel: Any, *, deadline: float, board: str) -> None:
        self._channel = channel
        self._deadline = deadline
        self._board = board
        self._numbers = itertools.count(1)
        self._send(_INIT, struct.pack(">I", 3))
        kind, body = self._packet()
        if kind != _VERSION:
            raise self._refused("speak SFTP", "the answer is not a version")
        self._extensions = set(_strings(body[4:])[::2])

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """Turn an answer that ends before what it should hold into a refusal."""
        try:
            yield
        except (struct.error, IndexError) as error:
            raise self._refused("speak SFTP", "an answer is cut short") from error

    def write(self, local: Path, remote: str, *, offset: int, progress: Progress | None) -> bool:
        """Write local[offset:] at offset, cut there first; return whether it was fsynced."""
        with self._understood():
            return self._write(local, remote, offset, progress)

    def _write(self, local: Path, remote: str, offset: int, progress: Progress | None) -> bool:
        flags = _FLAG_WRITE | _FLAG_CREATE | (0 if offset else _FLAG_TRUNCATE)
        attributes = struct.pack(">II", _HAS_MODE, 0o600)
        handle = self._open(remote, flags, attributes)
        if offset:
            size = struct.pack(">IQ", _HAS_SIZE, offset)
            self._demand(_FSETSTAT, _string(handle) + size, f"cut {remote}")
        end = self._write_all(local, handle, offset, progress)
        if self._stat(_FSTAT, handle).size != end:
            raise self._refused(f"write {remote}", "the file is shorter than what was written")
        synced = b"fsync@openssh.com" in self._extensions
        if synced:
            body = _string(b"fsync@openssh.com") + _string(handle)
            self._demand(_EXTENDED, body, f"fsync {remote}")
        self._demand(_CLOSE, _string(handle), f"close {remote}")
        return synced

    def read(self, remote: str, local: Path, *, limit: int) -> None:
        """Read a regular file; refuse a link, a device, and more than limit bytes."""
        with self._understood():
            self._read(remote, local, limit)

    def _read(self, remote: str, local: Path, limit: int) -> None:
        found = self._stat(_LSTAT, remote.encode(errors="surrogateescape"))
        if not stat.S_ISREG(found.mode):
            raise self._refused(f"read {remote}", "it is not a regular file")
        if found.size > limit:
            raise self._refused(f"read {remote}", f"it has {found.size} bytes, more than {limit}")
        handle = self._open(remote, _FLAG_READ, struct.pack(">I", 0))
        with local.open("wb") as file:
            position = 0
            while data := self._read_chunk(handle, position, remote):
                position += len(data)
                if position > limit:
                    raise self._refused(f"read {remote}", f"it grew beyond {limit} bytes")
                file.write(data)
        self._demand(_CLOSE, _string(handle), f"close {remote}")

    def _write_all(self, local: Path, handle: bytes, offset: int, progress: Progress | None) -> int:
        waiting: set[int] = set()
        position = offset
        with local.open("rb") as file:
            file.seek(offset)
            while data := file.read(_CHUNK):
                while len(waiting) >= _IN_FLIGHT:
                    self._settle(waiting)
                place = struct.pack(">Q", position)
                waiting.add(self._request(_WRITE, _string(handle) + place + _string(data)))
                position += len(data)
                if progress is not None:
                    progress(position)
        while waiting:
            self._settle(waiting)
        return position

    def _settle(self, waiting: set[int]) -> None:
        kind, number, body = self._answer()
        waiting.discard(number)
        self._check(kind, body, "write (is the disk full?)")

    def _read_chunk(self, handle: bytes, position: int, remote: str) -> bytes:
        kind, body = self._ask(_READ, _string(handle) + struct.pack(">QI", position, _CHUNK))
        if kind == _STATUS and struct.unpack_from(">I", body)[0] == _EOF:
            return b""
        if kind != _DATA:
            self._check(kind, body, f"read {remote}")
        return _strings(body)[0]

    def _open(self, remote: str, flags: int, attributes: bytes) -> bytes:
        name = remote.encode(errors="surrogateescape")
        kind, body = self._ask(_OPEN, _string(name) + struct.pack(">I", flags) + attributes)
        if kind != _HANDLE:
            self._check(kind, body, f"open {remote}")
        return _strings(body)[0]

    def _stat(self, kind: int, subject: bytes) -> _Stat:
        answer, body = self._ask(kind, _string(subject))
        if answer != _ATTRS:
            self._check(answer, body, f"stat {subject.decode(errors='replace')!r}")
        (flags,) = struct.unpack_from(">I", body)
        if not (flags & _HAS_SIZE and flags & _HAS_MODE):
            raise self._refused("stat", "the server tells neither size nor mode")
        (size,) = struct.unpack_from(">Q", body, 4)
        (mode,) = struct.unpack_from(">I", body, 20 if flags & _HAS_OWNER else 12)
        return _Stat(size=size, mode=mode)

    def _demand(self, kind: int, body: bytes, what: str) -> None:
        answer, reply = self._ask(kind, body)
        self._check(answer, reply, what)

    def _check(self, kind: int, body: bytes, what: str) -> None:
        if kind != _STATUS:
            raise self._refused(what, f"an answer of type {kind} makes no sense here")
        (code,) = struct.unpack_from(">I", body)
        if code != _OK:
            text = b"".join(_strings(body[4:])[:1]).decode(errors="replace")
            raise self._refused(what, _REASONS.get(code, text or f"status {code}"))

    def _refused(self, what: str, why: str) -> BoardIncompatible:
        return BoardIncompatible(
            f"{self._board}: cannot {what}",
            why=why,
            fix="check the path, its permissions and the free space on the board",
        )

    def _ask(self, kind: int, body: bytes) -> tuple[int, bytes]:
        number = self._request(kind, body)
        answer, replied, reply = self._answer()
        if replied != number:
            raise self._refused("speak SFTP", "answers come out of order")
        return answer, reply

    def _request(self, kind: int, body: bytes) -> int:
        number = next(self._numbers)
        self._send(kind, struct.pack(">I", number) + body)
        return number

    def _send(self, kind: int, body: bytes) -> None:
        with _bounded(self._channel, self._deadline, self._board):
            self._channel.sendall(struct.pack(">IB", len(body) + 1, kind) + body)

    def _answer(self) -> tuple[int, int, bytes]:
        kind, body = self._packet()
        if len(body) < 4:
            raise self._refused("speak SFTP", "an answer has no number")
        return kind, struct.unpack_from(">I", body)[0], body[4:]

    def _packet(self) -> tuple[int, bytes]:
        (size,) = struct.unpack(">I", self._exactly(4))
        if not 1 <= size <= _LONGEST:
            raise self._refused("speak SFTP", "the login prints text, or has no SFTP server")
        data = self._exactly(size)
        return data[0], data[1:]

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            with _bounded(self._channel, self._deadline, self._board):
                data = self._channel.recv(size)
            if not data:
                raise BoardUnreachable(
                    f"{self._board}: the connection was lost while a file was moved",
                    why="the SFTP session ended early",
                    fix="run it again: what arrived is not sent twice",
                )
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


class _bounded:  # noqa: N801 - a context manager that reads as a word
    """Let a channel's call wait until the deadline, and say so when it did."""

    def __init__(self, channel: Any, deadline: float, board: str) -> None:
        self._channel, self._deadline, self._board = channel, deadline, board

    def __enter__(self) -> None:
        self._channel.settimeout(max(0.01, self._deadline - time.monotonic()))

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TimeoutError):
            raise BoardUnreachable(
                f"{self._board}: a file was not moved in time",
                why="the deadline passed before the last byte was confirmed",
                fix="check the network; a slow one needs a longer timeout",
            ) from error
        if isinstance(error, OSError | EOFError):
            raise BoardUnreachable(
                f"{self._board}: the connection was lost while a file was moved",
                why=str(error) or "it was cut",
                fix="run it again: what arrived is not sent twice",
            ) from error


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _strings(body: bytes) -> list[bytes]:
    """Split a sequence of length-prefixed strings; one that is cut ends the list."""
    found: list[bytes] = []
    while len(body) >= 4:
        (size,) = struct.unpack_from(">I", body)
        found.append(body[4 : 4 + size])
        body = body[4 + size :]
    return found
