"""The public fakes do what they promise, or every test that uses them proves nothing."""

import contextlib
import socket
import threading
import time
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board import Board, Completed
from edgeopt.errors import BoardIncompatible, BoardUnreachable
from edgeopt.testing import FaultProxy, ScriptedBoard, answer

FILE = PurePosixPath("a/file")


def test_a_scripted_board_is_a_board() -> None:
    board: Board = ScriptedBoard({("cat",): lambda stdin: answer(stdin, status=3)})
    assert board.run(["cat"], stdin=b"x", timeout=1) == Completed(("cat",), 3, b"x", b"")


def test_anything_unscripted_fails_the_test() -> None:
    board = ScriptedBoard({("true",): answer()})
    with pytest.raises(AssertionError, match=r"unscripted command \('reboot',\)"):
        board.run(["reboot"], timeout=1)
    with pytest.raises(AssertionError, match="timeout"):
        board.run(["true"], timeout=0)


def test_files_are_kept_resumed_and_limited(tmp_path: Path) -> None:
    board = ScriptedBoard()
    local = tmp_path / "local"
    local.write_bytes(b"0123456789")
    board.put(local, FILE, timeout=1)
    local.write_bytes(b"----5678")
    board.put(local, FILE, offset=4, timeout=1)
    assert board.files[FILE] == b"01235678"
    board.get(FILE, tmp_path / "back", limit=8, timeout=1)
    assert (tmp_path / "back").read_bytes() == b"01235678"
    for path, limit in ((FILE, 7), (PurePosixPath("other"), 99)):
        with pytest.raises(BoardIncompatible):
            board.get(path, tmp_path / "back", limit=limit, timeout=1)
    assert [each[0] for each in board.calls] == ["put", "put", "get", "get", "get"]


def test_a_board_can_be_lost_at_any_call() -> None:
    board = ScriptedBoard({("true",): answer()}, lost_after=1)
    assert board.run(["true"], timeout=1).status == 0
    with pytest.raises(BoardUnreachable):
        board.run(["true"], timeout=1)


@pytest.fixture
def echo() -> int:
    """Start a server that sends back what it gets; return its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(4096):
                connection.sendall(data)

    def accept() -> None:
        for _ in range(4):
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()
        listener.close()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


def test_a_proxy_forwards_until_its_fault(echo: int) -> None:
    with FaultProxy(echo, fault="reset", at_byte=5, faults=1) as proxy:
        for breaks in (True, False):
            with socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
                client.sendall(b"12345")
                assert client.recv(100) == b"12345"
                client.sendall(b"6")
                if breaks:
                    with pytest.raises(ConnectionResetError):
                        client.recv(100)
                else:
                    assert client.recv(100) == b"6"
        assert proxy.accepted == 2


def test_a_black_hole_swallows_without_a_word(echo: int) -> None:
    with (
        FaultProxy(echo, fault="blackhole", at_byte=0) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), 5) as client,
    ):
        client.sendall(b"lost")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(100)


def test_a_flipped_bit_is_one_bit_of_one_connection(echo: int) -> None:
    with FaultProxy(echo, fault="flip", at_byte=1, faults=1) as proxy:
        for arrives in (b"12344", b"12345"):
            with socket.create_connection(("127.0.0.1", proxy.port), 5) as client:
                client.sendall(b"12345")
                assert client.recv(100) == arrives
                client.sendall(b"7")
                assert client.recv(100) == b"7"


def test_a_slow_link_holds_back_what_it_forwards(echo: int) -> None:
    with (
        FaultProxy(echo, delay=0.1) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), 5) as client,
    ):
        begun = time.monotonic()
        client.sendall(b"12345")
        assert client.recv(100) == b"12345"
        # There and back.
        assert time.monotonic() - begun >= 0.2
