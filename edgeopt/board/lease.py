"""One session at a time on a board: a lease that its holder cannot leave behind for ever.

The lease is one file under the deploy folder, made by link(2), which fails when the name exists:
its content is there from the first moment. It counts in the board's own uptime, so no clock has
to be right, and a reboot ends it. A holder that lost it finds its token gone (fencing).
"""

import contextlib
import getpass
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

from edgeopt.board import Board, Completed
from edgeopt.errors import BoardBusy, BoardIncompatible, BoardUnreachable

#: EX_TEMPFAIL of sysexits.h: somebody else holds it.
_BUSY = 75

#: The file's one line: TOKEN BOOT-ID EXPIRY OWNER, where the expiry is in seconds of uptime.
_LOOK = """\
umask 077
mkdir -p "$1" && cd "$1" || exit 1
read -r boot </proc/sys/kernel/random/boot_id
read -r now rest </proc/uptime
now=${now%%.*}
look() {
  holder= since= expires=0 owner=
  [ ! -e lease ] || read -r holder since expires owner <lease || :
}
"""

#: Arguments: folder, token, seconds, and an owner that is known to be dead, or nothing; our own
#: owner line on stdin. Those that find the same stale lease
#: take turns by making the folder named after it, and look again when it is their turn; a turn
#: whose owner died is over after two minutes.
_TAKE = (
    _LOOK
    + """\
read -r mine
echo "$2 $boot $((now + $3)) $mine" >"lease.$2" || exit 1
taken= holder= expires=0 owner=
for try in 1 2 3; do
  if ln "lease.$2" lease 2>/dev/null; then taken=yes; break; fi
  look
  # Released in between: try again to be the first.
  [ "$holder" ] || continue
  [ "$since" != "$boot" ] || [ "$now" -ge "$expires" ] || [ "$owner" = "$4" ] || break
  stale=$holder
  if [ -n "$(find "stale.$stale" -maxdepth 0 -mmin +2 2>/dev/null)" ]; then
    rmdir "stale.$stale"
  fi
  mkdir "stale.$stale" 2>/dev/null || break
  look
  [ "$holder" != "$stale" ] || { mv -f "lease.$2" lease && taken=yes; }
  rmdir "stale.$stale"
  break
done
rm -f "lease.$2"
[ -z "$taken" ] || exit 0
echo "$((expires > now ? expires - now : 0)) $owner"
exit 75
"""
)

#: Whether the lease is still ours: two seconds before its end it is not, so that no one else can
#: take it between the look and what follows.
_OURS = (
    _LOOK
    + """\
look
ours() {
  [ "$holder" = "$2" ] && [ "$since" = "$boot" ] && [ "$now" -lt "$((expires - 2))" ]
}
"""
)

#: Arguments: folder, token, seconds. Confirms, and extends when seconds is not 0.
_CONFIRM = (
    _OURS
    + """\
if ! ours "$@"; then
  echo "$((expires > now ? expires - now : 0)) $owner"
  exit 75
fi
[ "$3" = 0 ] && exit 0
echo "$2 $boot $((now + $3)) $owner" >"lease.$2" && mv -f "lease.$2" lease
"""
)

_RELEASE = _OURS + 'if ours "$@"; then rm -f lease; fi\n'


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to change what is under root on a board, for a while."""

    board: Board
    root: PurePosixPath
    #: Unpredictable, and no other holder's: what a later step compares before it writes.
    token: str
    timeout: float

    def confirm(self) -> None:
        """Raise BoardBusy when the lease was lost: it has expired, or the board restarted."""
        self._check("0")

    def renew(self, seconds: float) -> None:
        """Let the lease end seconds from now, unless it was lost (BoardBusy)."""
        self._check(str(round(seconds)))

    def _check(self, seconds: str) -> None:
        done = _call(self.board, _CONFIRM, self.root, self.token, seconds, timeout=self.timeout)
        if done.status == _BUSY:
            _busy(self.board, self.root, done.stdout, "the lease was lost")


@contextlib.contextmanager
def hold(
    board: Board, root: PurePosixPath, *, owner: str, seconds: float, timeout: float = 60.0
) -> Iterator[Lease]:
    """Hold the board's lease while the body runs; BoardBusy names who holds it otherwise.

    It ends by itself after seconds of the board's uptime, or when the board restarts: then the
    next one to ask takes it over. root is made when it is missing.
    """
    token = secrets.token_hex(16)
    line = json.dumps(_ourselves(owner)).encode() + b"\n"
    asked = (token, str(round(seconds)))
    done = _call(board, _TAKE, root, *asked, "", stdin=line, timeout=timeout)
    if done.status == _BUSY and (dead := _dead_owner(done.stdout)):
        done = _call(board, _TAKE, root, *asked, dead, stdin=line, timeout=timeout)
    if done.status == _BUSY:
        _busy(board, root, done.stdout, "the board is in use")
    try:
        yield Lease(board=board, root=root, token=token, timeout=timeout)
    finally:
        # A lease on a board that is gone ends by itself; what the body raised is the news.
        with contextlib.suppress(BoardUnreachable):
            _call(board, _RELEASE, root, token, timeout=timeout)


def _ourselves(owner: str) -> dict[str, object]:
    return {
        "owner": owner,
        "host": socket.gethostname(),
        "user": _user(),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
    }


def _start_of(pid: int) -> int:
    """Return when a process of this machine started, in ticks since boot; 0 when it has ended.

    Field 22 of /proc/PID/stat (proc(5)): with it a number that is used again is not mistaken.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _dead_owner(answer: bytes) -> str:
    """Return the holder's line when it was a process of this machine that has ended, else ""."""
    text = answer.decode(errors="replace").strip().partition(" ")[2]
    try:
        who = json.loads(text)
        here = who["host"] == socket.gethostname()
        return text if here and _start_of(int(who["pid"])) != who["started"] else ""
    except (ValueError, TypeError, KeyError):
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A user without an account, as containers have them.
        return str(os.getuid())


def _call(
    board: Board,
    script: str,
    root: PurePosixPath,
    *arguments: str,
    stdin: bytes = b"",
    timeout: float,
) -> Completed:
    # Commands start in the home folder, and a quoted "~" means nothing to a shell.
    folder = str(root).removeprefix("~/")
    argv = ["sh", "-c", script, "sh", folder, *arguments]
    done = board.run(argv, stdin=stdin, timeout=timeout)
    if done.status not in (0, _BUSY):
        raise BoardIncompatible(
            f"{board.name}: cannot keep a lease in {root}",
            why=done.stderr.decode(errors="replace").strip() or f"status {done.status}",
            fix="check that this user may write there, or choose another deploy folder",
        )
    return done


def _busy(board: Board, root: PurePosixPath, answer: bytes, what: str) -> NoReturn:
    left, _, text = answer.decode(errors="replace").strip().partition(" ")
    try:
        who = json.loads(text)
        holder = f"{who['owner']} by {who['user']}@{who['host']}, process {who['pid']}"
    except (ValueError, TypeError, KeyError):
        holder = text or "somebody who has left no name"
    raise BoardBusy(
        f"{board.name}: {what}",
        why=f"{holder}; it ends in {left} s at the latest",
        fix=f"wait for it; if you know that it is dead, remove {root}/lease on the board",
    )
