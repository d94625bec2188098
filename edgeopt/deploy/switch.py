"""Assemble a release, switch to it in one rename, go back, and remove what nothing needs.

The order on the board makes every crash harmless: a release appears by one rename of a complete
folder, `current` changes by one rename of a link, and what must follow (the previous link, the
history) is written down before, so that whoever comes next finishes it (see states).
"""

import datetime
import json
import secrets
from collections.abc import Sequence
from typing import Literal

import edgeopt
from edgeopt.artifact import BundleFile
from edgeopt.board import Board
from edgeopt.board.script import run_script
from edgeopt.deploy.place import CHECK_TIMEOUT, Place, hash_timeout
from edgeopt.deploy.states import COMMON

#: What an event of the history says was done; restore takes back a switch that failed.
Action = Literal["deploy", "rollback", "restore"]

# Parameters: what begins ("stage" or "try"), the digest, then the objects to come: what is there of
# them stays, to be resumed.
_PREPARE = (
    COMMON
    + r"""
step=$1 digest=$2; shift 2
first=no; if [ ! -d "$home" ]; then first=yes; fi
for each in "$root/objects" "$root/apps" "$home" "$home/releases" "$root/runs"; do
    if [ -L "$each" ]; then fail "$each is a symbolic link"; fi
    mkdir -p "$each"
done
if [ "$first" = yes ]; then flush "${root%/*}" "$root" "$root/apps" "$home"; fi
for each in "$home/state" "$home/history.jsonl"; do
    if [ -L "$each" ]; then fail "$each is a symbolic link"; fi
done
current current > /dev/null
rm -rf "$root"/.tmp-* "$home"/.tmp-* "$home"/releases/.tmp-*
# Drafts of those who died while they asked for the lease; while it is ours none can become one.
rm -f "$root"/lease.* "$root"/next.* "$root"/link.* "$root"/fence.*
rm -rf "$root"/draft.* "$root"/stale.* "$root"/turn "$root"/turn.*
rm -rf "$home"/releases/*/.tmp-* "$root"/runs/run-*
recover
for each in "$root"/objects/*.part; do
    if [ -L "$each" ]; then rm -f "$each"; continue; fi
    name=${each##*/}; keep=no
    for one in "$@"; do if [ "$name" = "$one.part" ]; then keep=yes; fi; done
    if [ "$keep" = no ]; then rm -rf "$each"; fi
done
note "$step $digest"
"""
)

# Parameters: digest, then sha256, name and mode of each file. `boot` says since which start of the
# board the files are known to be good: with a restart a disk may lose what it said it had. What is
# there is repaired file by file, each by one rename: it may be the current release.
_ASSEMBLE = (
    COMMON
    + r"""
digest=$1; shift
final=$home/releases/$digest
made=$home/releases/.tmp-$digest-$$
put() {
    object=$root/objects/$1
    [ -f "$object" ] || fail "object $1 is gone"
    chmod "$3" "$object"
    if [ "$object" -ef "$4/$2" ]; then return 0; fi
    rm -f "$4/.tmp-file"
    ln "$object" "$4/.tmp-file" 2>/dev/null || {
        cp "$object" "$4/.tmp-file"
        chmod "$3" "$4/.tmp-file"
        flush "$4/.tmp-file"
    }
    mv -f "$4/.tmp-file" "$4/$2"
}
# An object that was damaged and sent again was a file of other releases too.
mend() {
    for other in "$root"/apps/*/releases/*/sha256sums; do
        grep -qs "^$1  $2\$" "$other" || continue
        cmp -s "$root/objects/$1" "${other%/*}/$2" || put "$1" "$2" "$3" "${other%/*}"
    done
}
folder=$final
if [ ! -e "$final" ]; then folder=$made; mkdir "$made"; fi
rm -f "$folder/.tmp-sums" "$folder/.tmp-boot"
while [ $# -ge 3 ]; do
    put "$1" "$2" "$3" "$folder"
    mend "$1" "$2" "$3"
    printf '%s  %s\n' "$1" "$2" >> "$folder/.tmp-sums"
    shift 3
done
cat /proc/sys/kernel/random/boot_id > "$folder/.tmp-boot" 2>/dev/null || true
flush "$folder/.tmp-sums" "$folder/.tmp-boot"
mv -f "$folder/.tmp-boot" "$folder/boot"
mv -f "$folder/.tmp-sums" "$folder/sha256sums"
flush "$folder"
if [ "$folder" = "$made" ]; then mv -T "$made" "$final"; flush "$home/releases"; fi
note "try $digest"
"""
)

# Where signers are allowed, only what one of them has signed may become current, and nothing
# older than what was. The list of digests must be the signed manifest's before it is compared.
_SIGNED = r"""
says() { sed -n "s/^$1 //p" "$home/releases/$new/statement" | head -n 1; }
number() { case $1 in ''|*[!0-9]*|?????????????*) echo 0 ;; *) echo "$1" ;; esac; }
counts() {
    cd "$home/releases/$new"
    [ -f statement ] && [ -f statement.sig ] || fail "release $new is not signed"
    [ "$(says app) $(says digest)" = "$app $new" ] || fail "release $new is signed as another one"
    sums=$(sha256sum < manifest.json)
    [ "${sums%% *}" = "$new" ] || fail "the manifest of release $new is damaged"
    grep -q "\"target\": *\"$(says target)\"" manifest.json ||
        fail "release $new is signed for another target"
    lines=0
    while read -r sum name; do
        [ "$name" = manifest.json ] || grep -q "\"$sum\"" manifest.json ||
            fail "$name is not in the signed manifest"
        lines=$((lines + 1))
    done < sha256sums
    [ "$(grep -o '"sha256"' manifest.json | wc -l)" -eq "$((lines - 1))" ] ||
        fail "sha256sums is not the signed manifest's"
    sha256sum -c sha256sums > /dev/null 2>&1 || fail "a file of release $new is damaged"
    if command -v ssh-keygen > /dev/null 2>&1; then
        who=$(ssh-keygen -Y find-principals -s statement.sig -f "$1" 2>/dev/null | head -n 1)
        [ -n "$who" ] || fail "release $new is signed by nobody who is allowed to"
        ssh-keygen -Y verify -f "$1" -I "$who" -n edgeopt -s statement.sig < statement \
            > /dev/null 2>&1 || fail "the signature of release $new is of another text"
        echo verified
    fi
    if [ "$(number "$(says serial)")" -lt "$(number "$(cat "$home/serial" 2>/dev/null)")" ]; then
        [ "$2" = yes ] || fail "release $new is older than one that was current"
    else
        says serial > "$home/.tmp-serial" && flush "$home/.tmp-serial"
        mv -f "$home/.tmp-serial" "$home/serial"
        flush "$home"
    fi
    cd "$home"
}
"""

# Parameters: digest, event, whether a release may be older than those before, whether it is to be
# checked once it is current, and whether what is current was found to be damaged.
_SWITCH = (
    COMMON
    + _SIGNED
    + r"""
recover
new=$1 event=$2 downgrade=$3 check=$4 damaged=$5
old=$(current current)
program=$home/releases/$new/edgeopt-run
[ -f "$home/releases/$new/sha256sums" ] || fail "release $new is not there"
[ -x "$program" ] || fail "$program cannot be executed"
if [ -e "$root/allowed_signers" ]; then counts "$root/allowed_signers" "$downgrade"; fi
if [ "$old" != "$new" ]; then
    # On a full disk the way back must still work: links need no space, only notes do.
    note "switch $new ${old:--}" "$event" 2>/dev/null || true
    if [ "$check" = yes ]; then doubt "$new"; fi
    if [ "$damaged" = yes ] && [ -n "$old" ]; then doubt "$old"; fi
    point current "$new"
    flush "$home"
    # The release is active now; what is left the next command finishes.
    finish "$new" "${old:--}" "$event" 2>/dev/null || true
fi
"""
)

# Parameters: the digests that were current and previous before a switch, or "-", and the event.
_RESTORE = (
    COMMON
    + r"""
note "restore $1 $2" "$3" 2>/dev/null || true
if [ "$1" != - ]; then doubt "$1"; fi
take_back "$1" "$2"
log "$3"
"""
)

# Parameter: the digest of a release that is current and has just run.
_TRUST = COMMON + 'trust "$1"\n'

# Parameters: digest, statement, signature, allowed signers. Signers that are there stay: who may
# write them may write anything else, and a deploy must not change them by the way.
_STATEMENT = (
    COMMON
    + r"""
keep() {
    [ ! -L "$1" ] || fail "$1 is a symbolic link"
    draft=${1%/*}/.tmp-${1##*/}
    rm -f "$draft"
    printf '%s' "$2" > "$draft"
    chmod 400 "$draft"
    flush "$draft"
    mv -f "$draft" "$1"
}
release=$home/releases/$1
[ -d "$release" ] || fail "release $1 is not there"
keep "$release/statement" "$2"
keep "$release/statement.sig" "$3"
flush "$release"
if [ ! -e "$root/allowed_signers" ]; then keep "$root/allowed_signers" "$4"; flush "$root"; fi
"""
)

_CHECK_RELEASE = (
    COMMON
    + r"""
cd "$home/releases/$1" || fail "release $1 is not there"
sums=$(sha256sum < manifest.json)
[ "${sums%% *}" = "$1" ] || fail "the manifest of release $1 is damaged"
# Some sha256sum find nothing wrong with an empty list.
[ -s sha256sums ] && sha256sum -c sha256sums > /dev/null 2>&1 ||
    fail "a file of release $1 is damaged"
"""
)

# An object goes when no release of any application lists it. While another application is being
# staged its objects are not listed yet: then all stay.
_SWEEP = r"""
sweep() {
    for each in "$root"/apps/*/state; do
        [ "$each" != "$home/state" ] || continue
        if grep -qs "^stage " "$each"; then return 0; fi
    done
    for each in "$root"/objects/*; do
        name=${each##*/}
        case $name in *.part|'*') continue ;; esac
        sha256=${name%.chunks}
        if ! grep -qs "^$sha256 " "$root"/apps/*/releases/*/sha256sums; then rm -f "$each"; fi
    done
}
drop() {
    rm -rf "$home/releases/.tmp-drop-$1"
    mv -T "$home/releases/$1" "$home/releases/.tmp-drop-$1"
    rm -rf "$home/releases/.tmp-drop-$1"
}
"""

# Parameters: the release that was seen to run, or "-", then those to keep besides the two links'.
_COLLECT = (
    COMMON
    + _SWEEP
    + r"""
proven=$1; shift
recover
trust "$proven"
current=$(current current); previous=$(current previous)
for each in "$home"/releases/*; do
    [ -d "$each" ] || continue
    name=${each##*/}; keep=no
    for one in "$current" "$previous" "$@"; do
        if [ "$name" = "$one" ]; then keep=yes; fi
    done
    if [ "$keep" = yes ]; then continue; fi
    note "collect $name" 2>/dev/null || true
    drop "$name"
done
sweep
rm -f "$home/state"
flush "$home"
"""
)

_DISCARD = (
    COMMON
    + _SWEEP
    + r"""
recover
current=$(current current); previous=$(current previous)
if [ "$1" = "$current" ] || [ "$1" = "$previous" ]; then echo kept; exit 0; fi
if [ -d "$home/releases/$1" ]; then drop "$1"; fi
sweep
echo dropped
"""
)


def prepare_place(
    board: Board, place: Place, digest: str, coming: Sequence[BundleFile], *, staging: bool
) -> None:
    """Make the folders, finish or forget what a crash left, and note what begins.

    That is the staging of a release, or, where it is complete already, its trial.
    """
    step = "stage" if staging else "try"
    arguments = (str(place.root), place.app, step, digest, *(each.sha256 for each in coming))
    run_script(board, _PREPARE, arguments, doing="prepare the deploy directory")


def assemble_release(board: Board, place: Place, digest: str, files: Sequence[BundleFile]) -> None:
    """Make the release's folder of hard links appear at once, or repair the one that is there."""
    arguments = [str(place.root), place.app, digest]
    for each in files:
        arguments += [each.sha256, each.name, "500" if each.executable else "400"]
    # Where hard links are refused the files are copied.
    timeout = hash_timeout(sum(each.size for each in files))
    run_script(board, _ASSEMBLE, arguments, doing="assemble the release", timeout=timeout)


def place_statement(
    board: Board, place: Place, digest: str, *, statement: str, signature: str, allowed: str
) -> None:
    """Put a statement and its signature beside a release; a board without signers gets some."""
    arguments = (str(place.root), place.app, digest, statement, signature, allowed)
    run_script(board, _STATEMENT, arguments, doing="store the signature")


def switch_release(
    board: Board,
    place: Place,
    digest: str,
    action: Action,
    *,
    downgrade: bool = False,
    check: bool = False,
    damaged: bool = False,
) -> bool:
    """Make the release current in one rename; what was current becomes the previous one.

    With `check` it counts as unproven from then on, until it is trusted. What was current and is
    `damaged`, or unproven itself, becomes no previous one.

    Returns whether the board itself verified a signature. Where it has signers, a release without
    a signature, or one older than those before, is a DeployFailed.
    """
    arguments = (
        str(place.root),
        place.app,
        digest,
        _event(digest, action, downgrade=downgrade and action == "deploy"),
        "yes" if downgrade else "no",
        "yes" if check else "no",
        "yes" if damaged else "no",
    )
    lines = run_script(
        board, _SWITCH, arguments, doing="switch to the release", timeout=CHECK_TIMEOUT
    )
    return "verified" in lines


def restore_links(board: Board, place: Place, *, current: str, previous: str) -> None:
    """Undo a switch: point both links to what they were ("" removes a link).

    What is current then is unproven until it is trusted.
    """
    event = _event(current, "restore")
    arguments = (str(place.root), place.app, current or "-", previous or "-", event)
    run_script(board, _RESTORE, arguments, doing="restore the previous release")


def trust_release(board: Board, place: Place, digest: str) -> None:
    """Note that the current release was seen to run."""
    arguments = (str(place.root), place.app, digest)
    run_script(board, _TRUST, arguments, doing="note that the release runs")


def check_release(board: Board, place: Place, digest: str) -> None:
    """Hash every file of a release on the board; a damaged one is a DeployFailed."""
    arguments = (str(place.root), place.app, digest)
    run_script(board, _CHECK_RELEASE, arguments, doing="verify the release", timeout=CHECK_TIMEOUT)


def collect_garbage(
    board: Board, place: Place, *, proven: str = "", keep: Sequence[str] = ()
) -> None:
    """Remove releases other than current, previous and `keep`, then unlisted objects.

    Before that the release `proven`, if any, is trusted: it was seen to run.
    """
    arguments = (str(place.root), place.app, proven or "-", *keep)
    run_script(board, _COLLECT, arguments, doing="remove old releases")


def drop_release(board: Board, place: Place, digest: str) -> bool:
    """Remove one release and its objects; the current and the previous one stay (False)."""
    arguments = (str(place.root), place.app, digest)
    lines = run_script(board, _DISCARD, arguments, doing="discard the release")
    return lines[-1:] == ["dropped"]


def _event(digest: str, action: Action, *, downgrade: bool = False) -> str:
    event: dict[str, object] = {"downgrade": True} if downgrade else {}
    event |= {
        "action": action,
        "digest": digest,
        # Two events are never equal: the board appends one only when it is not there yet.
        "id": secrets.token_hex(4),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "version": edgeopt.__version__,
    }
    return json.dumps(event, sort_keys=True, separators=(",", ":"))
