"""What lies on a board now, and what happened there."""

import datetime
from pathlib import PurePosixPath

from pydantic import Field, ValidationError

from edgeopt.artifact import Fact
from edgeopt.board import Board
from edgeopt.board.owner import read_number
from edgeopt.board.script import run_script
from edgeopt.deploy.place import (
    CHECK_TIMEOUT,
    Place,
    check_name,
    check_root,
    known_digest,
    parse_free,
)
from edgeopt.deploy.states import MEANINGS, STEPS, State
from edgeopt.deploy.switch import Action
from edgeopt.errors import DeployFailed

_STATUS = r"""
root=$1 app=$2 check=$3
case $root in '~') root=$(pwd);; '~/'*) root=$(pwd)/${root#'~/'};; esac
home=$root/apps/$app
echo "root $root"
for each in current previous; do
    if [ -L "$home/$each" ]; then echo "$each $(readlink "$home/$each")"; fi
done
if [ -f "$home/current/sha256sums" ]; then echo "complete yes"; fi
if [ -e "$home/current/unproven" ]; then echo "unproven yes"; fi
if [ -f "$home/current/statement.sig" ]; then
    echo "serial $(sed -n 's/^serial //p' "$home/current/statement" | head -n 1)"
fi
if [ -e "$root/allowed_signers" ]; then echo "signers $(wc -l < "$root/allowed_signers")"; fi
if [ -d "$root" ]; then echo "space $(df -Pk "$root" 2>/dev/null | tail -n 1)"; fi
if [ -f "$home/state" ]; then echo "state $(head -n 1 "$home/state")"; fi
for each in "$home"/releases/*/sha256sums; do
    if [ -f "$each" ]; then each=${each%/*}; echo "release ${each##*/}"; fi
done
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null || true)
if [ "$(cat "$home/current/boot" 2>/dev/null)" != "$boot" ]; then check=check; fi
if [ "$check" = check ] && cd "$home/current" 2>/dev/null; then
    sums=$(sha256sum < manifest.json) || sums=unreadable
    target=$(readlink "$home/current")
    if [ "${sums%% *}" = "${target##*/}" ] && [ -s sha256sums ] &&
        sha256sum -c sha256sums > /dev/null 2>&1; then
        echo "files good"
    else
        echo "files bad"
    fi
fi
"""

_HISTORY = r"""
root=$1 app=$2 limit=$3
case $root in '~') root=$(pwd);; '~/'*) root=$(pwd)/${root#'~/'};; esac
tail -n "$limit" "$root/apps/$app/history.jsonl" 2>/dev/null || true
"""


class Status(Fact):
    """What is deployed of one application on one board."""

    board: str
    app: str
    #: The deploy directory, resolved.
    root: str
    state: State
    #: Digests, or "". `subject` is the release that `state` speaks of.
    subject: str = ""
    current: str
    previous: str
    #: Whether the current release was seen to run since it became current.
    proven: bool = True
    releases: tuple[str, ...]
    #: Whether every file of the current release still has its digest; None when not checked. They
    #: always are where the board has started since they were known to be good.
    files_good: bool | None = None
    #: Serial of the statement that was signed with the current release; None: it has no signature.
    serial: int | None = None
    #: How many signers the board asks for: where there are any, nothing unsigned becomes current.
    signers: int = 0
    #: Bytes free to us where releases lie; None where the board cannot tell.
    free: int | None = None

    @property
    def meaning(self) -> str:
        """What the state says, in a sentence; "" when a release is current and all is well."""
        return MEANINGS[self.state].format(self.subject[:12] or "a release")


class HistoryEntry(Fact):
    """One event, as deploy wrote it on the board; the time is the host's."""

    time: datetime.datetime
    action: Action
    digest: str = Field(pattern="^[0-9a-f]{64}$|^$")
    version: str = Field(pattern="^[0-9A-Za-z.+!-]{1,64}$")
    id: str = Field(pattern="^[0-9a-f]{8}$")
    #: Whether it was allowed to be older than a release before it.
    downgrade: bool = False


def read_status(board: Board, app: str, *, root: PurePosixPath, check: bool = False) -> Status:
    """Ask what is deployed; `check` hashes the current release's files on the board again."""
    arguments = (str(check_root(root)), check_name(app, "application"), "check" if check else "-")
    lines = run_script(board, _STATUS, arguments, doing="read the status", timeout=CHECK_TIMEOUT)
    values: dict[str, str] = {}
    releases = []
    for line in lines:
        key, _, value = line.partition(" ")
        values[key] = value
        if key == "release":
            releases.append(value)
    if "root" not in values:
        raise DeployFailed(f"the status of {board.name} cannot be read")
    current = known_digest(PurePosixPath(values.get("current", "")).name)
    state, subject = _state_of(values)
    return Status(
        board=board.name,
        app=app,
        root=values["root"],
        state=state,
        subject=current if state == "checking" else subject,
        current=current,
        proven="unproven" not in values,
        previous=known_digest(PurePosixPath(values.get("previous", "")).name),
        releases=tuple(each for each in releases if known_digest(each)),
        files_good=values["files"] == "good" if "files" in values else None,
        serial=read_number(values["serial"]) if "serial" in values else None,
        signers=read_number(values.get("signers", "")),
        free=parse_free(values.get("space", ""), unit=1024),
    )


def _state_of(values: dict[str, str]) -> tuple[State, str]:
    """Return the state and the digest that its note names, or ""."""
    step, _, rest = values.get("state", "").partition(" ")
    subject = known_digest(rest.partition(" ")[0])
    if "current" in values and (values.get("complete") != "yes" or values.get("files") == "bad"):
        return "broken", subject
    if step:
        # Another version may know more of them: whatever it is, it is not finished.
        return STEPS.get(step, "switching"), subject
    if "current" not in values:
        return "empty", ""
    return ("checking" if "unproven" in values else "ready"), ""


def read_history(
    board: Board, app: str, *, root: PurePosixPath, limit: int = 100
) -> tuple[HistoryEntry, ...]:
    """Return the latest events, oldest first; a line that a power cut tore is left out."""
    arguments = (str(check_root(root)), check_name(app, "application"), str(limit))
    entries = []
    for line in run_script(board, _HISTORY, arguments, doing="read the history"):
        try:
            # Some file systems fill with zeros what a power cut took.
            entries.append(HistoryEntry.model_validate_json(line.lstrip("\0")))
        except ValidationError:
            continue
    return tuple(entries)


def place_from(status: Status) -> Place:
    """Return the resolved place that a status speaks of."""
    return Place(root=check_root(PurePosixPath(status.root)), app=status.app)
