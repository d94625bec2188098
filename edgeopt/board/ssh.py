"""A board reached over SSH, with nothing on it but OpenSSH (or its like) and a POSIX shell."""

import contextlib
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, final

import paramiko

from edgeopt.board import KEPT_OUTPUT, TIMED_OUT, Completed, Kind
from edgeopt.board.connect import Link, Patience, open_link
from edgeopt.board.destination import Hop, read_route
from edgeopt.board.remote import LOGIN, supervised
from edgeopt.board.sftp import Progress, Sftp
from edgeopt.errors import BoardIncompatible, BoardUnreachable

_Result = TypeVar("_Result")

#: What a login may print before our marker, in bytes, on top of what is kept of the command's own.
_NOISE = 1 << 16
#: The board's own deadline is later than ours by this, in seconds: ours is the one that counts.
_LATER = 30
#: Seconds for what is still on its way: output when the exit status is there, a session's end.
_REST = 10.0


def open_ssh(
    destination: str, *, ssh_config: Path | None = None, patience: Patience | None = None
) -> "SshBoard":
    """Connect to an alias of ~/.ssh/config, user@host, user@host:port or ssh://user@host:port.

    Raises ConfigError when that cannot be read, BoardUnreachable when nobody lets us in.
    """
    route = read_route(destination, ssh_config=ssh_config)
    board = SshBoard(route, name=destination, patience=patience)
    board.connect()
    return board


@final
class SshBoard:
    """One device behind an SSH server. Threads may share it; each call has its own channel."""

    def __init__(
        self,
        route: Sequence[Hop],
        *,
        name: str,
        kind: Kind = "board",
        patience: Patience | None = None,
    ) -> None:
        self._route = tuple(route)
        self._name = name
        self._kind: Kind = kind
        self._patience = patience or Patience()
        self._link: Link | None = None
        self._lock = threading.Lock()
        #: How often a lost connection was opened again.
        self.reconnects = 0
        #: Called before a file is sent once more through a connection that was opened again;
        #: what it raises ends the call.
        self.before_resend: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self._name

    @property
    def kind(self) -> Kind:
        """The kind of every figure measured here."""
        return self._kind

    def connect(self) -> None:
        """Open the connection if there is none; every call does so by itself."""
        self._linked()

    def close(self) -> None:
        """Close the connection; commands that still run there are killed by their supervisors."""
        with self._lock:
            if self._link is not None:
                self._link.close()
                self._link = None

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        """Run one program. Sent once only: a connection lost while it runs is an error."""
        mark = secrets.token_hex(16)
        limit = math.ceil(timeout) + _LATER
        line = supervised(argv, mark=mark, size=len(stdin), limit=limit)
        deadline = time.monotonic() + timeout
        # Nothing has been sent when opening fails, so it can be tried again.
        channel, link = self._again(self._open_session)
        with _closing(channel):
            session = _Session(channel, line + stdin)
            status = self._wait(session, link, deadline)
        return self._completed(tuple(argv), status, session, mark.encode() + b"\n")

    def put(
        self,
        local: Path,
        remote: PurePosixPath,
        *,
        offset: int = 0,
        timeout: float,
        progress: Progress | None = None,
    ) -> None:
        """Send local[offset:]; progress is called with the file's position after each chunk."""
        deadline = time.monotonic() + timeout

        def send() -> bool:
            with self._sftp(deadline) as sftp:
                return sftp.write(local, str(remote), offset=offset, progress=progress)

        if not self._again(send, self.before_resend):
            # A server without fsync@openssh.com; -f FILE is unknown to old busybox.
            self.run(["sync"], timeout=max(1.0, deadline - time.monotonic()))

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        """Read a regular file of at most limit bytes; local is complete or not there."""
        deadline = time.monotonic() + timeout
        part = local.with_name(f".{local.name}.{secrets.token_hex(4)}.part")

        def fetch() -> None:
            with self._sftp(deadline) as sftp:
                sftp.read(str(remote), part, limit=limit)

        try:
            self._again(fetch)
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)

    def _linked(self) -> Link:
        with self._lock:
            if self._link is None or not self._link.active:
                if self._link is not None:
                    self._link.close()
                    self.reconnects += 1
                self._link = open_link(self._route, self._patience)
            return self._link

    def _again(
        self, call: Callable[[], _Result], between: Callable[[], None] | None = None
    ) -> _Result:
        """Call once more when the connection turns out to be lost: only what may be repeated."""
        link = self._linked()
        try:
            return call()
        except BoardUnreachable:
            # The transport's thread ends a moment after its channels do.
            link.transport.join(1.0)
            if link.active:
                raise
            if between is not None:
                between()
            return call()

    def _open_session(self) -> tuple[Any, Link]:
        link = self._linked()
        until = time.monotonic() + _REST
        try:
            while True:
                try:
                    return link.transport.open_session(timeout=self._patience.connect), link
                except paramiko.ChannelException as error:
                    # With few MaxSessions the session before may not have ended there yet.
                    if time.monotonic() > until:
                        raise self._full(error) from error
                    time.sleep(0.1)
        except (paramiko.SSHException, OSError, EOFError) as error:
            # Alive by its socket, and yet no session in time: do not use it again.
            link.close()
            raise self._lost(link, str(error)) from error

    @contextlib.contextmanager
    def _sftp(self, deadline: float) -> Iterator[Sftp]:
        channel, link = self._open_session()
        with _closing(channel):
            try:
                channel.settimeout(self._patience.connect)
                channel.invoke_subsystem("sftp")
            except (paramiko.SSHException, OSError, EOFError) as error:
                if not link.active:
                    raise self._lost(link, str(error)) from error
                raise BoardIncompatible(
                    f"{self._name}: the server has no SFTP",
                    why="it refuses the subsystem 'sftp'",
                    fix="install openssh-sftp-server there, and name it in sshd_config",
                ) from error
            yield Sftp(channel, deadline=deadline, board=self._name)

    def _wait(self, session: "_Session", link: Link, deadline: float) -> int:
        """Wait for the end; at the deadline have the command killed, and wait for that."""
        if session.ended(deadline - time.monotonic()):
            return session.status(link, self._lost)
        # The supervisor takes the end of stdin as the order to kill.
        session.stop()
        if session.ended(self._patience.silence):
            session.status(link, self._lost)
            return TIMED_OUT
        link.close()
        raise self._lost(link, "it does not answer any more, and the time for the command is over")

    def _completed(
        self, argv: tuple[str, ...], status: int, session: "_Session", mark: bytes
    ) -> Completed:
        streams: list[bytes] = []
        truncated = False
        for sink in (session.stdout, session.stderr):
            noise, found, output = bytes(sink.kept).partition(mark)
            if not found:
                shown = noise[:500].decode(errors="replace").strip()
                raise BoardIncompatible(
                    f"{self._name}: the login does not run commands",
                    why=f"it printed: {shown!r}" if shown else "it ended without a word",
                    fix="use a user whose shell may run programs (no ForceCommand, no nologin)",
                )
            truncated |= sink.dropped or len(output) > KEPT_OUTPUT
            streams.append(output[:KEPT_OUTPUT])
        return Completed(argv, status, streams[0], streams[1], truncated)

    def _full(self, error: Any) -> BoardUnreachable:
        return BoardUnreachable(
            f"{self._name}: the server opens no session",
            why=error.text or "it gives no reason",
            fix="close other sessions, or raise MaxSessions in its sshd_config",
        )

    def _lost(self, link: Link, why: str) -> BoardUnreachable:
        return BoardUnreachable(
            f"{self._name}: the connection was lost",
            why=link.lost or why or "it was cut",
            fix="check the board's power and network, then run it again",
        )


@contextlib.contextmanager
def _closing(channel: Any) -> Iterator[None]:
    try:
        yield
    finally:
        # On a lost connection that fails too, and is not the news.
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            channel.close()


class _Sink:
    """The beginning of one output stream; the rest is read and dropped."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self.kept = bytearray()
        self.dropped = False
        self._receive = receive

    def drain(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while data := self._receive(1 << 16):
                room = KEPT_OUTPUT + _NOISE - len(self.kept)
                self.kept += data[:room]
                self.dropped |= len(data) > room


class _Session:
    """One exec channel whose three streams move at once, so that none can block another."""

    def __init__(self, channel: Any, stdin: bytes) -> None:
        self._channel = channel
        self._stdin = stdin
        self._refused = ""
        self.stdout = _Sink(channel.recv)
        self.stderr = _Sink(channel.recv_stderr)
        self._readers = [
            threading.Thread(target=sink.drain, name="edgeopt-output", daemon=True)
            for sink in (self.stdout, self.stderr)
        ]
        writer = threading.Thread(target=self._start, name="edgeopt-input", daemon=True)
        for each in (*self._readers, writer):
            each.start()

    def _start(self) -> None:
        """Send the request, then stdin, which stays open: its end would kill the command."""
        try:
            self._channel.settimeout(None)
            # The same text each time; what it runs comes on stdin.
            self._channel.exec_command(LOGIN)  # nosec B601
        except (paramiko.SSHException, OSError, EOFError) as error:
            self._refused = str(error) or "the request was refused"
            self._channel.close()
            return
        with contextlib.suppress(OSError, EOFError):
            self._channel.sendall(self._stdin)

    def ended(self, timeout: float) -> bool:
        """Wait until the exit status is there and both streams have ended."""
        deadline = time.monotonic() + max(0.0, timeout)
        if not self._channel.status_event.wait(max(0.0, timeout)):
            return False
        for each in self._readers:
            # A process that left the group may keep a stream open: it is not waited for.
            each.join(max(2.0, min(_REST, deadline - time.monotonic())))
        return True

    def stop(self) -> None:
        """End stdin without closing the channel, so that the status still comes."""
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def status(self, link: Link, lost: Callable[[Link, str], BoardUnreachable]) -> int:
        """Return the exit status; -1 is paramiko's word for a channel that ended without one."""
        if self._channel.exit_status >= 0:
            return int(self._channel.exit_status)
        raise lost(link, self._refused or "the session ended without a status")
