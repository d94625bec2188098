"""Who holds a lease: a process of some host, as it describes itself and as it is told to others."""

import getpass
import json
import os
import socket
from dataclasses import dataclass, replace
from pathlib import Path

from edgeopt.errors import visible


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lease, as the board tells it; an empty token where nobody does."""

    token: str = ""
    #: What it does: "edgeopt deploy questions".
    what: str = ""
    user: str = ""
    host: str = ""
    pid: int = 0
    #: Of the process, in ticks since its host booted: a number that is used again is not mistaken.
    started: int = 0
    fence: int = 0
    #: Seconds that it is held, and seconds until it ends without a sign of its holder.
    held_s: int = 0
    left_s: int = 0

    @property
    def held(self) -> bool:
        """Whether anybody holds it."""
        return bool(self.token)

    @property
    def who(self) -> str:
        """The holder in words."""
        if not self.what:
            return "somebody who has left no name"
        return f"{self.what} by {self.user}@{self.host}, process {self.pid}"

    @property
    def dead(self) -> bool:
        """Whether it was a process of this machine, which has ended."""
        here = self.host == socket.gethostname()
        return self.held and here and _start_of(self.pid) != self.started


def describe_ourselves(what: str) -> bytes:
    """Return the line by which others know us."""
    facts = {
        "owner": what,
        "host": socket.gethostname(),
        "user": _user(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
    }
    return json.dumps(facts).encode() + b"\n"


def describe_owner(answer: bytes) -> Owner:
    """Read "LEFT TOKEN FENCE HELD OWNER", in which any part may be damaged or missing."""
    words = visible(answer.decode(errors="replace")).strip().split(" ", 4)
    left, token, fence, held, text = (*words, "", "", "", "", "")[:5]
    known = Owner(
        token, fence=read_number(fence), held_s=read_number(held), left_s=read_number(left)
    )
    try:
        said = json.loads(text)
        return replace(
            known,
            # JSON has escapes of its own for what a terminal obeys.
            what=visible(str(said["owner"])),
            user=visible(str(said["user"])),
            host=visible(str(said["host"])),
            pid=int(said["pid"]),
            started=int(said["started"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return known


def read_number(text: str) -> int:
    """Return a number that a board printed; 0 for what is none."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) < 19 else 0


def _start_of(pid: int) -> int:
    """Return when a process of this machine started, in ticks since boot; 0 when it has ended.

    Field 22 of /proc/PID/stat (proc(5)).
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A user without an account, as containers have them.
        return str(os.getuid())
