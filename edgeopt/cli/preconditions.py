"""What edgeopt doctor asks of a board before anything is deployed; nothing is changed there."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from edgeopt.cli.checkup import Finding
from edgeopt.errors import BoardIncompatible, BoardUnreachable
from edgeopt.scratch import scratch

if TYPE_CHECKING:
    from edgeopt.board import Board
    from edgeopt.board.lease import Tenancy
    from edgeopt.deploy import Survey

#: Of two releases with their objects, and a run's files.
_LEAST_INODES = 64
#: Seconds; as Kerberos allows (RFC 4120, section 8.2), more than any clock that is set is off.
_MOST_SKEW = 300
#: A small file that every Linux system has.
_READ = PurePosixPath("/proc/sys/kernel/random/boot_id")

_ASK = """\
if command -v ssh-keygen >/dev/null 2>&1; then echo keygen; fi
echo "time $(date +%s)"
"""


@dataclass(frozen=True, slots=True)
class Tools:
    """What a board has beside a shell: OpenSSH's ssh-keygen, and the time in seconds since 1970."""

    keygen: bool
    time: int | None


def examine_place(board: "Board", root: PurePosixPath, app: str) -> list[Finding]:
    """Ask a board for all of it: its deploy folder, who holds it, its files and its programs."""
    from edgeopt.board.lease import read_tenancy
    from edgeopt.deploy import survey_board

    return [
        judge_tenancy(read_tenancy(board, root)),
        *judge_survey(survey_board(board, root=root, app=app)),
        judge_transfer(board),
        *judge_tools(read_tools(board), now=time.time()),
    ]


def judge_tenancy(found: "Tenancy") -> Finding:
    """Say who holds a board now: a deploy would have to wait."""
    owner = found.owner
    free = not owner.held or owner.dead
    said = f"free (last fence {found.fence})"
    if not free:
        said = f"held by {owner.who}, for at most {owner.left_s} s"
    fix = "wait with --wait 10min, or take it: edgeopt board kick"
    return Finding("lease", free, said, fix, required=False)


def judge_survey(survey: "Survey") -> list[Finding]:
    """Say what is in the way of a deploy, and what it would lack there."""
    root, inodes = survey.place.root, survey.free_inodes
    obstacles = ", ".join(survey.obstacles)
    lacks = ", ".join(survey.lacks)
    return [
        Finding(
            "deploy folder",
            not obstacles,
            f"{obstacles} is a file or a symbolic link"
            if obstacles
            else f"nothing is in the way of {root}",
            f"remove {obstacles}" if obstacles else "",
        ),
        Finding(
            "inodes",
            inodes is None or inodes >= _LEAST_INODES,
            "the board does not tell" if inodes is None else f"{inodes} free",
            "remove small files",
        ),
        Finding(
            "programs",
            not lacks,
            f"it has no {lacks}" if lacks else "has all that a deploy needs",
            "install coreutils or busybox there",
        ),
    ]


def judge_transfer(board: "Board") -> Finding:
    """Fetch a file of a few bytes, as results are."""
    with scratch() as folder:
        try:
            board.get(_READ, folder / "file", limit=4096, timeout=60)
        except (BoardIncompatible, BoardUnreachable) as error:
            # A server without SFTP may just hang up; a board that is lost does not answer the next.
            said = "; ".join(filter(None, (error.what, error.why)))
            return Finding("file transfer", False, said, error.fix)
    return Finding("file transfer", True, "a file was fetched", "")


def read_tools(board: "Board") -> Tools:
    """Ask which of the programs are there that only some boards need, and what time it is."""
    done = board.run(["sh", "-c", _ASK], timeout=60)
    return parse_tools(done.stdout.decode(errors="replace").splitlines())


def parse_tools(lines: Sequence[str]) -> Tools:
    """Read "keygen" and "time SECONDS"; what is missing or damaged is not there."""
    told = [line.removeprefix("time ") for line in lines if line.startswith("time ")]
    seconds = told[-1] if told else ""
    return Tools("keygen" in lines, int(seconds) if seconds.isdecimal() else None)


def judge_tools(tools: Tools, *, now: float) -> list[Finding]:
    """Compare a board's time with now, in seconds since 1970; both are warnings."""
    skew = None if tools.time is None else round(tools.time - now)
    told = "the board does not tell" if skew is None else f"{skew:+d} s of this machine's"
    return [
        Finding(
            "signatures",
            tools.keygen,
            "ssh-keygen is there" if tools.keygen else "no ssh-keygen: only this machine verifies",
            "install openssh-client (keygen) there, if releases are signed",
            required=False,
        ),
        Finding(
            "time",
            skew is not None and abs(skew) <= _MOST_SKEW,
            told,
            "set its clock (NTP): it says whether a signer's days are over",
            required=False,
        ),
    ]
