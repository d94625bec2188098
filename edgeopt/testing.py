"""Boards for tests: one that answers from a script, and a network that fails on purpose."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Literal, Self, final

from edgeopt.board import Completed, Kind
from edgeopt.errors import BoardIncompatible, BoardUnreachable

#: What a scripted command answers: always the same, or made from its stdin.
Answer = Completed | Callable[[bytes], Completed]


@final
class ScriptedBoard:
    r"""A board that answers known commands, keeps files, and fails on anything unscripted.

    >>> board = ScriptedBoard({("uname", "-m"): answer("aarch64\n")})
    >>> board.run(["uname", "-m"], timeout=1).stdout
    b'aarch64\n'
    >>> board.run(["reboot"], timeout=1)
    Traceback (most recent call last):
        ...
    AssertionError: unscripted command ('reboot',); scripted: ('uname', '-m')
    """

    def __init__(
        self,
        answers: Mapping[tuple[str, ...], Answer] | None = None,
        *,
        name: str = "scripted",
        kind: Kind = "board",
        lost_after: int | None = None,
    ) -> None:
        self._answers = dict(answers or {})
        self._name = name
        self._kind: Kind = kind
        self._lost_after = lost_after
        #: What put() has written, by path.
        self.files: dict[PurePosixPath, bytes] = {}
        #: Every call in its order: ("run", argv...), ("put", path), ("get", path).
        self.calls: list[tuple[str, ...]] = []
        self.closed = False

    @property
    def name(self) -> str:
        """What the test calls it."""
        return self._name

    @property
    def kind(self) -> Kind:
        """The kind the test wants its figures to have."""
        return self._kind

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        """Answer a scripted command; AssertionError for any other, and for no timeout."""
        words = tuple(argv)
        self._called("run", *words)
        assert timeout > 0, "a timeout must be positive"
        if words not in self._answers:
            known = "; ".join(map(str, self._answers)) or "nothing"
            raise AssertionError(f"unscripted command {words}; scripted: {known}")
        found = self._answers[words]
        done = found if isinstance(found, Completed) else found(stdin)
        return Completed(words, done.status, done.stdout, done.stderr, done.truncated)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        """Keep the file's bytes from offset on after what is there already."""
        self._called("put", str(remote))
        assert timeout > 0, "a timeout must be positive"
        before = self.files.get(remote, b"")[:offset]
        self.files[remote] = before.ljust(offset, b"\0") + local.read_bytes()[offset:]

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        """Write a kept file to local; BoardIncompatible when there is none, or it is too large."""
        self._called("get", str(remote))
        assert timeout > 0, "a timeout must be positive"
        if remote not in self.files or len(self.files[remote]) > limit:
            raise BoardIncompatible(
                f"{self._name}: cannot read {remote}",
                why="no such file, or too large",
                fix="put it into the script's files",
            )
        local.write_bytes(self.files[remote])

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True

    def _called(self, *words: str) -> None:
        if self._lost_after is not None and len(self.calls) >= self._lost_after:
            raise BoardUnreachable(
                f"{self._name}: the connection was lost",
                why=f"the script ends after {self._lost_after} calls",
                fix="none: this is a test",
            )
        self.calls.append(words)


def answer(stdout: str | bytes = b"", *, status: int = 0, stderr: str | bytes = b"") -> Completed:
    """Make a Completed for a script; text is encoded, and argv is filled in by the board."""
    out, err = (text.encode() if isinstance(text, str) else text for text in (stdout, stderr))
    return Completed((), status, out, err)


@final
class FaultProxy:
    """A TCP proxy on 127.0.0.1 that breaks its connections after so many bytes from the client.

    "reset" sends RST to both ends, "blackhole" swallows everything from then on without a word,
    "flip" changes one bit, "none" only forwards. Only the first `faults` connections break.
    Every 16 KiB is held back for `delay` seconds, as a slow link does.
    """

    def __init__(
        self,
        port: int,
        *,
        fault: Literal["none", "reset", "blackhole", "flip"] = "none",
        at_byte: int = 0,
        faults: int = 1 << 30,
        delay: float = 0.0,
    ) -> None:
        self._target = port
        #: May be changed while connections are open.
        self.fault = fault
        self.at_byte = at_byte
        self._faults = faults
        self._delay = delay
        self._open: list[socket.socket] = []
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        #: Where to connect instead.
        self.port = int(self._listener.getsockname()[1])
        #: Connections accepted, and bytes that clients have sent through all of them.
        self.accepted = 0
        self.forwarded = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="fault-proxy", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def cut(self) -> None:
        """Reset every connection that is open now; new ones are accepted."""
        for each in self._open:
            _reset(each)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target), 10)
            except OSError:
                continue
            server.settimeout(None)
            self.accepted += 1
            breaks = self.accepted <= self._faults
            self._open += [client, server]
            for source, sink, counted in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pump, args=(source, sink, counted, breaks), daemon=True
                ).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, counted: bool, breaks: bool
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                passed += len(data) if counted else 0
                self.forwarded += len(data) if counted else 0
                self._stopped.wait(self._delay)
                over = self.forwarded if not counted else passed
                if breaks and self.fault != "none" and over > self.at_byte:
                    if self.fault == "blackhole":
                        continue
                    if self.fault == "reset":
                        _reset(source)
                        _reset(sink)
                        return
                    data, breaks = (_flip(data), False) if counted else (data, breaks)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _reset(connection: socket.socket) -> None:
    """Close with a linger of zero, which sends RST instead of FIN, and wake who waits in it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    with contextlib.suppress(OSError):
        connection.close()
