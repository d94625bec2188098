"""Authenticated SSH connections: every hop's key verified, every wait bounded, silence noticed."""

import contextlib
import logging
import secrets
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from edgeopt.board.destination import Hop
from edgeopt.board.known_hosts import KnownKey, fingerprint, read_known_keys
from edgeopt.errors import BoardUnreachable

# Every failure is raised; what paramiko's thread would print on stderr repeats it.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

#: One pass over the data instead of two comes first. No CBC, no 3DES; under instruction counting
#: all of these move 3 to 7 MB/s, so that speed does not choose.
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr")
_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)
#: Signatures with SHA-1, and DSA: older releases of paramiko still know them.
_WEAK_KEYS = ("ssh-rsa", "ssh-dss")
#: known_hosts names a kind of key, the handshake a kind of signature.
_SIGNATURES = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}
#: Bytes of a server's first words that are kept.
_GREETING = 300
#: Seconds before a server that hung up is asked again, at first.
_PAUSE = 0.2


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a board, in seconds."""

    #: Each of: connecting, key exchange, logging in, opening a channel.
    connect: float = 20.0
    #: Without one byte from the board, although asked for a sign of life, before it is given up.
    silence: float = 20.0


#: An emulated processor that counts instructions needs a second for a handshake on a quiet
#: machine, and more than ten on a busy one.
SLOW = Patience(connect=120.0, silence=90.0)


class _Tap:
    """A socket, or a channel through a jump host, that knows when it last received."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        # paramiko's transport looks at this name when it stops.
        self._closed = False
        self.heard = time.monotonic()
        #: What came first; a server that lets us in says "SSH-" there.
        self.first = b""

    def recv(self, size: int) -> bytes:
        data: bytes = self._inner.recv(size)
        self.heard = time.monotonic()
        if len(self.first) < _GREETING:
            self.first += data
        return data

    def send(self, data: bytes) -> int:
        return int(self._inner.send(data))

    def settimeout(self, seconds: float | None) -> None:
        self._inner.settimeout(seconds)

    def close(self) -> None:
        self._closed = True
        # Closing a socket does not wake a thread that waits in it; shutting it down does.
        with contextlib.suppress(OSError):
            self._inner.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError, EOFError):
            self._inner.close()


class Link:
    """A live connection to the last hop of a route. Closed by close(), or by silence.

    paramiko sends keepalives but never looks for the answer, so this does: one thread asks for a
    sign of life when it is quiet, another one gives the connection up.
    """

    def __init__(self, transports: Sequence[Any], tap: _Tap, patience: Patience) -> None:
        self.transport = transports[-1]
        self.patience = patience
        self._transports = tuple(transports)
        self._tap = tap
        self._closed = threading.Event()
        #: Why the link was given up; empty while it lives.
        self.lost = ""
        for each in (self._ask, self._watch):
            threading.Thread(target=each, name="edgeopt-link", daemon=True).start()

    @property
    def active(self) -> bool:
        """Whether commands can be sent, as far as is known."""
        return not self._closed.is_set() and bool(self.transport.is_active())

    def close(self) -> None:
        """Close every connection of the route, the innermost first."""
        self._closed.set()
        self._tap.close()
        for each in reversed(self._transports):
            each.close()

    def _ask(self) -> None:
        pause = self.patience.silence / 4
        while not self._closed.wait(pause / 2):
            if time.monotonic() - self._tap.heard > pause:
                # Returns when answered, by refusal too, or when the transport has ended.
                with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
                    self.transport.global_request("keepalive@openssh.com", wait=True)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.patience.silence / 8)):
            quiet = time.monotonic() - self._tap.heard
            if quiet > self.patience.silence:
                self.lost = f"nothing was heard from it for {quiet:.0f} s"
                self.close()


class _Dropped(BoardUnreachable):
    """A connection that was cut before it was one, as by a server that has too many just now."""


def open_link(route: Sequence[Hop], patience: Patience) -> Link:
    """Connect hop by hop, verify each host key, log in; raise BoardUnreachable otherwise.

    A server that hangs up, as MaxStartups has it do, and a network that cuts are asked again after
    pauses that double and differ from those of others, for as long as a connection may take.
    """
    until = time.monotonic() + patience.connect
    pause = _PAUSE
    while True:
        try:
            return _open_link(route, patience)
        except _Dropped:
            rest = pause * (0.5 + secrets.randbelow(1000) / 1000)
            if time.monotonic() + rest > until:
                raise
        time.sleep(rest)
        pause *= 2


def _open_link(route: Sequence[Hop], patience: Patience) -> Link:
    transports: list[Any] = []
    tap: _Tap | None = None
    try:
        for hop in route:
            tap = None
            with _translated(hop):
                inner = (
                    _tunnel(transports[-1], hop, patience) if transports else _dial(hop, patience)
                )
                tap = _Tap(inner)
                transports.append(_handshake(tap, hop, patience))
                _log_in(transports[-1], hop)
    except BoardUnreachable as error:
        if tap is not None:
            tap.close()
        for each in reversed(transports):
            each.close()
        if tap is not None and _was_cut(tap, error.__cause__):
            raise _Dropped(error.what, why=error.why, fix=error.fix) from error.__cause__
        raise
    assert tap is not None
    return Link(transports, tap, patience)


def _was_cut(tap: _Tap, cause: BaseException | None) -> bool:
    """Tell a connection that ended from one that is refused by name, or has no answer in time."""
    if cause is None or isinstance(cause, TimeoutError):
        return False
    return b"SSH-" not in tap.first or isinstance(cause, EOFError | ConnectionError)


def _dial(hop: Hop, patience: Patience) -> socket.socket:
    """Connect, such that small packets leave at once and the kernel notices a dead peer."""
    raw = socket.create_connection((hop.host, hop.port), timeout=patience.connect)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(patience.silence * 1000))
    return raw


def _tunnel(transport: Any, hop: Hop, patience: Patience) -> Any:
    """Open a connection to the next hop from within the one before."""
    return transport.open_channel(
        "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=patience.connect
    )


def _handshake(tap: _Tap, hop: Hop, patience: Patience) -> Any:
    """Exchange keys and compare the host's key with the ones that known_hosts holds."""
    known = read_known_keys(hop.known_hosts, hop.known_as)
    transport = paramiko.Transport(tap)
    transport.daemon = True
    # start_client's clock alone decides: paramiko's own ones would race it with another error.
    transport.banner_timeout = 2 * patience.connect
    transport.handshake_timeout = 2 * patience.connect
    transport.auth_timeout = patience.connect
    transport.channel_timeout = patience.connect
    options = transport.get_security_options()
    options.ciphers = _CIPHERS
    options.digests = _MACS
    options.kex = tuple(name for name in options.kex if not name.endswith("sha1"))
    # A server with several keys is asked for the kinds that are known here.
    wanted = [name for key in known for name in _SIGNATURES.get(key.algorithm, (key.algorithm,))]
    kinds = [name for name in dict.fromkeys(wanted) if name in options.key_types]
    others = (name for name in options.key_types if name not in (*kinds, *_WEAK_KEYS))
    options.key_types = (*kinds, *others)
    try:
        transport.start_client(timeout=patience.connect)
        if not transport.initial_kex_done:
            # It returns without an error when the time is over.
            raise TimeoutError
        _verify(transport.get_remote_server_key(), known, hop)
    except (BoardUnreachable, paramiko.SSHException, EOFError, OSError):
        transport.close()
        raise
    return transport


def _verify(key: Any, known: Sequence[KnownKey], hop: Hop) -> None:
    blob, shown = key.asbytes(), f"{key.get_name()} {fingerprint(key.asbytes())}"
    same = [each for each in known if each.blob == blob]
    if any(each.revoked for each in same):
        raise BoardUnreachable(
            f"{hop.label}: its host key is revoked",
            why=f"it offers {shown}, revoked at {same[0].place}",
            fix="do not use this board before it has a new host key",
        )
    if same:
        return
    kind = key.get_name().removeprefix("ssh-").split("-")[0]
    place = shlex.quote(str(hop.known_hosts[0]))
    scan = f"ssh-keyscan -p {hop.port} -t {kind} {hop.host} >> {place}"
    if hop.host not in hop.known_as:
        scan = f"ssh {hop.label}"
    trusted = [each for each in known if not each.revoked]
    if not trusted:
        raise BoardUnreachable(
            f"{hop.label}: its host key is unknown",
            why=f"it offers {shown}, and {hop.known_hosts[0]} has no key for it",
            fix="compare that with 'ssh-keygen -lf /etc/ssh/ssh_host_"
            f"{kind}_key.pub' on the board's own console, then enrol it: {scan}",
        )
    expected = ", ".join(
        f"{each.algorithm} {fingerprint(each.blob)} ({each.place})" for each in trusted
    )
    raise BoardUnreachable(
        f"{hop.label}: its host key is not the known one",
        why=f"it offers {shown}; known is {expected}",
        fix="somebody may be in between. Only if you know that the board was installed anew: "
        f"ssh-keygen -R '{hop.known_as}', then enrol its key again: {scan}",
    )


def _log_in(transport: Any, hop: Hop) -> None:
    """Offer the configured keys, then the agent's, until one is accepted."""
    offered: list[str] = []
    with contextlib.closing(paramiko.Agent()) as agent:
        for label, key in _candidates(hop, agent, offered):
            try:
                left = transport.auth_publickey(hop.user, key)
            except paramiko.AuthenticationException:
                offered.append(label)
                if not transport.is_active():
                    break
                continue
            if left:
                raise BoardUnreachable(
                    f"{hop.label}: the key is accepted, but not enough",
                    why=f"the server also asks for: {', '.join(left)}",
                    fix="let this user log in with a key alone",
                )
            return
    raise BoardUnreachable(
        f"{hop.label}: cannot log in as {hop.user}",
        why=f"refused: {'; '.join(offered)}" if offered else "there is no key to offer",
        fix=f"install a key there: ssh-copy-id -p {hop.port} {hop.user}@{hop.host}; "
        "or name one as IdentityFile in ~/.ssh/config, or load it: ssh-add",
    )


def _candidates(hop: Hop, agent: Any, notes: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield each key once: those that the agent holds for an identity first, as ssh does."""
    held = {key.asbytes(): key for key in agent.get_keys()}
    for path in hop.identities:
        public = _read_public(path)
        if public in held:
            yield f"{path} (agent)", held.pop(public)
        elif path.is_file():
            key = _read_private(path, notes)
            if key is not None:
                held.pop(key.asbytes(), None)
                yield str(path), key
    if hop.agent:
        for key in held.values():
            yield f"{key.comment or key.get_name()} (agent)", key


def _read_public(path: Path) -> bytes | None:
    try:
        text = path.with_name(f"{path.name}.pub").read_text(errors="replace")
    except OSError:
        return None
    keys = text.split()
    try:
        return bytes(paramiko.PublicBlob.from_string(text).key_blob) if len(keys) > 1 else None
    except ValueError:
        return None


def _read_private(path: Path, notes: list[str]) -> Any | None:
    """Load a key file; one that cannot be used is noted, as others may do."""
    try:
        return paramiko.PKey.from_path(path)
    except (TypeError, paramiko.PasswordRequiredException):
        notes.append(f"{path} (encrypted, not offered: load it with ssh-add)")
    except (OSError, ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        notes.append(f"{path} (not readable: {error})")
    return None


@contextlib.contextmanager
def _translated(hop: Hop) -> Iterator[None]:
    """Turn what the network and paramiko raise into what happened and what to do."""
    place = f"{hop.host}:{hop.port}"
    look = f"check that the board is on and try: ssh -p {hop.port} {hop.user}@{hop.host}"
    try:
        yield
    except socket.gaierror as error:
        raise BoardUnreachable(
            f"{hop.label}: no host named {hop.host}",
            why=str(error.strerror),
            fix="check the spelling, or give the board's IP address",
        ) from error
    except ConnectionRefusedError as error:
        raise BoardUnreachable(
            f"{hop.label}: nothing listens at {place}",
            why="the connection was refused",
            fix=f"start the SSH server there, or give its port. {look}",
        ) from error
    except TimeoutError as error:
        raise BoardUnreachable(
            f"{hop.label}: no answer from {place}", why="the time was over", fix=look
        ) from error
    except paramiko.ChannelException as error:
        raise BoardUnreachable(
            f"{hop.label}: the jump host does not connect to {place}", why=error.text, fix=look
        ) from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise BoardUnreachable(
            f"{hop.label}: {place} does not complete an SSH handshake",
            why=str(error) or "the connection was cut",
            fix=f"check that an OpenSSH server of 2016 (7.2) or later listens there. {look}",
        ) from error
