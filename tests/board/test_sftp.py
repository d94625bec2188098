"""The SFTP client against a scripted server that fails where real ones do."""

import struct
import time
from pathlib import Path

import pytest

from edgeopt.board.sftp import Sftp
from edgeopt.errors import BoardIncompatible, BoardUnreachable

OPEN, CLOSE, WRITE, FSTAT, EXTENDED = 3, 4, 6, 8, 200


class Server:
    """The server's end of a channel: keeps one file, fails the numbered write, counts requests."""

    def __init__(
        self, *, fail_write: int = -1, lose: int = 0, extensions: bytes = b"", hello: bytes = b""
    ) -> None:
        self.data = bytearray()
        self.requests: list[int] = []
        self._fail_write = fail_write
        self._lose = lose
        self._extensions = extensions
        self._answers = bytearray(hello)
        self._pending = bytearray()

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def recv(self, size: int) -> bytes:
        data = bytes(self._answers[:size])
        del self._answers[:size]
        return data

    def sendall(self, data: bytes) -> None:
        self._pending += data
        while len(self._pending) >= 4:
            (size,) = struct.unpack_from(">I", self._pending)
            packet = bytes(self._pending[4 : 4 + size])
            del self._pending[: 4 + size]
            self._serve(packet[0], packet[1:])

    def _serve(self, kind: int, body: bytes) -> None:
        if kind == 1:
            self._answer(2, struct.pack(">I", 3) + self._extensions)
            return
        self.requests.append(kind)
        number, rest = body[:4], body[4:]
        if kind == OPEN:
            self._answer(102, number + b"\0\0\0\x01h")
        elif kind == FSTAT:
            size = len(self.data) - self._lose
            self._answer(105, number + struct.pack(">IQI", 5, size, 0o100600))
        elif kind == WRITE:
            failed = self.requests.count(WRITE) == self._fail_write
            if not failed:
                self.data += rest[17:]
            self._answer(101, number + struct.pack(">I", 4 if failed else 0) + b"\0" * 8)
        else:
            self._answer(101, number + struct.pack(">I", 0) + b"\0" * 8)

    def _answer(self, kind: int, body: bytes) -> None:
        self._answers += struct.pack(">IB", len(body) + 1, kind) + body


FSYNC = b"\0\0\0\x11fsync@openssh.com\0\0\0\x011"


def write(server: Server, path: Path) -> bool:
    sftp = Sftp(server, deadline=time.monotonic() + 10, board="fake")
    return sftp.write(path, "there", offset=0, progress=None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(250)) * 12_000)
    return path


@pytest.mark.parametrize("extensions", [b"", FSYNC])
def test_a_file_is_written_and_fsynced_where_that_is_possible(
    file: Path, extensions: bytes
) -> None:
    server = Server(extensions=extensions)
    assert write(server, file) == bool(extensions)
    assert bytes(server.data) == file.read_bytes()
    assert (EXTENDED in server.requests) == bool(extensions)


@pytest.mark.parametrize("number", [1, 2, 65, 91, 92])
def test_a_write_that_fails_is_never_taken_for_success(file: Path, number: int) -> None:
    assert -(-file.stat().st_size // 32768) == 92
    with pytest.raises(BoardIncompatible, match="is the disk full"):
        write(Server(fail_write=number), file)


def test_a_file_that_ends_up_shorter_is_never_taken_for_success(file: Path) -> None:
    with pytest.raises(BoardIncompatible, match="shorter than what was written"):
        write(Server(lose=1), file)


@pytest.mark.parametrize("hello", [b"Welcome to the board!\n", b"\0\0\0\0", b"\0\0\0\x05\x65abcd"])
def test_a_login_that_prints_is_told_apart_from_a_server(file: Path, hello: bytes) -> None:
    with pytest.raises(BoardIncompatible, match="cannot speak SFTP"):
        write(Server(hello=hello), file)


def test_a_session_that_ends_is_a_lost_connection(file: Path) -> None:
    server = Server()
    server.sendall = lambda data: None  # type: ignore[method-assign]
    with pytest.raises(BoardUnreachable, match="connection was lost"):
        write(server, file)


def test_an_answer_that_is_cut_short_is_a_refusal(file: Path) -> None:
    server = Server()
    whole = server._answer
    server._answer = lambda kind, body: whole(kind, body[:12] if kind == 105 else body)  # type: ignore[method-assign]
    with pytest.raises(BoardIncompatible, match="an answer is cut short"):
        write(server, file)


def test_progress_is_told_in_positions_of_the_file(file: Path) -> None:
    seen: list[int] = []
    sftp = Sftp(Server(), deadline=time.monotonic() + 10, board="fake")
    sftp.write(file, "there", offset=0, progress=seen.append)
    assert seen[0] == 32768
    assert seen[-1] == file.stat().st_size
    assert seen == sorted(set(seen))
