"""From what the user writes to where to connect: destinations, aliases, jumps."""

import getpass
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko

from edgeopt.board.script import printable
from edgeopt.errors import ConfigError

_DESTINATION = re.compile(
    r"(?:ssh://)?(?:(?P<user>[\w.+-]+)@)?"
    r"(?:\[(?P<bracketed>[\w.:%]+)\]|(?P<host>[\w][\w.-]*)|(?P<bare>[0-9A-Fa-f]*:[\w:.%]*:[\w.:%]*))"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_MOST_JUMPS = 8


@dataclass(frozen=True, slots=True)
class Hop:
    """One SSH server on the way to the board; the last hop is the board."""

    #: What the user wrote.
    label: str
    host: str
    port: int
    user: str
    #: The name under which its key is looked up: "host", "[host]:port", or HostKeyAlias.
    known_as: str
    #: Private keys to try, in order; those named by a configuration come first.
    identities: tuple[Path, ...]
    #: Whether the agent may offer keys that no identity names.
    agent: bool
    known_hosts: tuple[Path, ...]


def read_route(destination: str, *, ssh_config: Path | None = None) -> tuple[Hop, ...]:
    """Resolve an alias, user@host, user@host:port or ssh://user@host:port, jumps first.

    ssh_config replaces ~/.ssh/config and /etc/ssh/ssh_config, as ssh -F does.
    """
    paths = (ssh_config,) if ssh_config else (Path.home() / ".ssh" / "config", _SYSTEM_CONFIG)
    if ssh_config and not ssh_config.is_file():
        raise ConfigError(
            f"cannot read the ssh configuration {ssh_config}",
            why="no such file",
            fix="name an existing file, or leave it out to use ~/.ssh/config",
        )
    text = "\n".join(_included(path, 0) for path in paths if path.is_file())
    try:
        return _route(destination, paramiko.SSHConfig.from_text(text), 0)
    # A port that is none is a ValueError; the rest is paramiko's.
    except (paramiko.SSHException, paramiko.ConfigParseError, ValueError, KeyError) as error:
        raise ConfigError(
            f"cannot read the ssh configuration for {destination}",
            why=printable(str(error).encode(errors="replace"), limit=200),
            fix=f"look what ssh says of it: ssh -G {destination}",
        ) from error


def _included(path: Path, depth: int) -> str:
    """Return the file's text with its Include lines replaced by what they name."""
    if depth > 16:
        raise ConfigError(
            f"cannot read {path}", why="its Include lines go in a circle", fix="remove one of them"
        )
    lines: list[str] = []
    for line in path.read_text(errors="replace").splitlines():
        words = line.replace("=", " ", 1).split()
        keyword = words[0].lower() if words else ""
        if keyword == "match" and "exec" in line.lower().split():
            raise ConfigError(
                f"{path}: 'Match exec' is refused",
                why="it runs a program of this machine whenever the file is read",
                fix="name the host instead of matching it, or give another file with --ssh-config",
            )
        if keyword != "include":
            lines.append(line)
            continue
        for pattern in words[1:]:
            place = Path(pattern).expanduser()
            full = place if place.is_absolute() else Path.home() / ".ssh" / place
            found = sorted(Path("/").glob(str(full.relative_to("/"))))
            lines.extend(_included(each, depth + 1) for each in found if each.is_file())
    return "\n".join(lines)


def _route(destination: str, config: paramiko.SSHConfig, depth: int) -> tuple[Hop, ...]:
    match = _DESTINATION.fullmatch(destination.strip())
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 0 < port < 65536):
        raise ConfigError(
            f"{destination!r} is not a board's address",
            why="expected an alias of ~/.ssh/config, user@host, or user@host:port",
            fix="write it like pi@raspberrypi.local or pi@192.0.2.7:2222",
        )
    named = match["bracketed"] or match["host"] or match["bare"]
    found = dict(config.lookup(named))
    if "proxycommand" in found and found["proxycommand"].lower() != "none":
        raise ConfigError(
            f"{destination}: ProxyCommand is not supported",
            why="it runs a program of this machine",
            fix="reach the board through ProxyJump, which needs no program",
        )
    hop = _hop(destination.strip(), found, user=match["user"], port=port)
    jump = found.get("proxyjump", "none")
    if jump.lower() == "none":
        return (hop,)
    before: list[Hop] = []
    for each in jump.split(","):
        if depth + len(before) >= _MOST_JUMPS:
            raise ConfigError(
                f"{destination}: more than {_MOST_JUMPS} jumps",
                why="the ProxyJump lines of the ssh configuration go in a circle",
                fix="give the jump host a section of its own with 'ProxyJump none'",
            )
        before.extend(_route(each, config, depth + 1))
    return (*before, hop)


def _hop(label: str, found: dict[str, Any], *, user: str | None, port: int | None) -> Hop:
    home = Path.home() / ".ssh"
    host = str(found["hostname"])
    number = port or int(found.get("port", 22))
    listed = host if number == 22 else f"[{host}]:{number}"
    named = tuple(Path(str(name)).expanduser() for name in found.get("identityfile", []))
    files = str(found.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")).split()
    known = [Path(name.strip('"')).expanduser() for name in files if name.lower() != "none"]
    return Hop(
        label=label,
        host=host,
        port=number,
        user=user or str(found.get("user", "")) or _own_name(label),
        # ssh looks an alias up as it stands, without the port.
        known_as=str(found.get("hostkeyalias", "")) or listed,
        identities=named or tuple(home / name for name in _DEFAULT_KEYS),
        agent=str(found.get("identitiesonly", "no")).lower() != "yes",
        known_hosts=(*known, _SYSTEM_KNOWN_HOSTS),
    )


def _own_name(label: str) -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:
        raise ConfigError(
            f"{label}: as which user?",
            why="this machine has no name for the one who runs edgeopt",
            fix=f"write it like user@{label}",
        ) from error
