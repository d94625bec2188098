"""Send files to a board as objects: each is named by its SHA-256 once that was verified there."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from edgeopt.artifact import BundleFile
from edgeopt.board import Board
from edgeopt.board.script import run_script
from edgeopt.deploy.chunks import SMALLEST_FILE
from edgeopt.deploy.delta import Delta, join_pieces, send_list
from edgeopt.deploy.place import (
    Place,
    hash_timeout,
    link_timeout,
)
from edgeopt.deploy.preflight import Survey
from edgeopt.errors import BoardUnreachable, DeployFailed, EdgeoptError, Interrupted
from edgeopt.scratch import scratch

#: Told after each file: its name, and the bytes of it that went over the wire.
Progress = Callable[[str, int], None]

_CHUNK = 1 << 20

_PREFIX = r"""
file=$1 length=$2
head -c "$length" "$file" | sha256sum
"""

# Only a verified object ever gets its name. "missing" happens when another session, cut off
# from its host, sealed the same upload first (then the object is there), or removed it. The list
# of its chunks is only a hint, and gets its name with it.
_SEAL = r"""
part=$1 object=$2 sha256=$3 mode=$4
list=$object.chunks
if [ -f "$list.part" ] && [ ! -L "$list.part" ]; then
    flush "$list.part"
    mv -f "$list.part" "$list"
fi
if [ ! -f "$part" ] || [ -L "$part" ]; then
    if [ -f "$object" ]; then echo sealed; else echo "missing"; fi
    exit 0
fi
found=$(sha256sum < "$part") || fail "sha256sum does not work there"
if [ "${found%% *}" != "$sha256" ]; then
    echo "differs $(size "$part")"
    rm -f "$part"
    exit 0
fi
chmod "$mode" "$part"
flush "$part"
mv -f "$part" "$object"
flush "${object%/*}"
echo sealed
"""

_REMOVE = r"""
rm -f "$@"
"""

# Pairs: the digest that a file must have, and where it lies.
_CHECK_FILES = r"""
while [ $# -ge 2 ]; do
    found=$(sha256sum < "$2") || found=unreadable
    if [ "${found%% *}" != "$1" ]; then echo "bad $1"; fi
    shift 2
done
"""


def upload_files(
    board: Board,
    files: Sequence[BundleFile],
    *,
    folder: Path,
    survey: Survey,
    deltas: Mapping[str, Delta],
    progress: Progress | None = None,
) -> int:
    """Send the files that the survey did not find; return how many of their bytes were sent.

    Of a file with a delta, by SHA-256, only that is sent, and all of it when this does not do.
    """
    sent = 0
    for each in files:
        local = folder / each.name
        _check_local(local, each)
        if each.size >= SMALLEST_FILE:
            with scratch() as drafts:
                send_list(board, survey.place, each, local, drafts)
        wire, done = 0, False
        if each.sha256 in deltas:
            wire, done = _send_delta(board, each, deltas[each.sha256], survey)
        if not done:
            offset = _resume_offset(board, local, each, survey)
            wire += _send_verified(board, local, each, place=survey.place, offset=offset)
        sent += wire
        if progress is not None:
            progress(each.name, wire)
    return sent


def _send_delta(board: Board, file: BundleFile, delta: Delta, survey: Survey) -> tuple[int, bool]:
    """Send what is missing of a file and put it together; return the bytes sent and whether it is.

    An object that was damaged on the board makes another file of it, which is not kept.
    """
    place, payload = survey.place, delta.payload
    wire = 0
    if payload.size:
        local = delta.folder / payload.name
        offset = _resume_offset(board, local, payload, survey)
        wire = _send_verified(board, local, payload, place=place, offset=offset)
    made = join_pieces(board, place, file, delta)
    outcome = _seal(board, file, place, part=made)
    arguments = (str(place.object(payload.sha256)),)
    run_script(board, _REMOVE, arguments, doing=f"remove the pieces of {file.name}")
    return wire, outcome == "sealed"


def find_damaged(
    board: Board, survey: Survey, digest: str, files: Sequence[BundleFile]
) -> frozenset[str]:
    """Return the digests of files that, hashed again on the board, are not what they should be.

    Looks into the release where it is installed, into the objects where it is not.
    """
    arguments = []
    for each in files:
        release = survey.place.release(digest) / each.name
        path = release if survey.installed else survey.place.object(each.sha256)
        arguments += [each.sha256, str(path)]
    timeout = hash_timeout(sum(each.size for each in files))
    lines = run_script(board, _CHECK_FILES, arguments, doing="check the files", timeout=timeout)
    return frozenset(line.removeprefix("bad ") for line in lines if line.startswith("bad "))


def _check_local(local: Path, file: BundleFile) -> None:
    found = _hash_prefix(local, file.size)
    if local.stat().st_size != file.size or found != file.sha256:
        raise DeployFailed(
            f"{local.name} of the bundle is not what its manifest says",
            why=f"SHA-256 {found[:16]} instead of {file.sha256[:16]}",
            fix="compile it again (see 'edgeopt cache')",
        )


def _hash_prefix(local: Path, length: int) -> str:
    digest = hashlib.sha256()
    with local.open("rb") as stream:
        while length > 0 and (chunk := stream.read(min(_CHUNK, length))):
            digest.update(chunk)
            length -= len(chunk)
    return digest.hexdigest()


def _resume_offset(board: Board, local: Path, file: BundleFile, survey: Survey) -> int:
    """Return how much of an interrupted upload is there and equal to ours."""
    there = survey.objects.get(f"{file.sha256}.part", 0)
    if there > file.size:
        return 0
    # A complete one is hashed by the seal, once.
    if there in (0, file.size):
        return there
    arguments = (str(survey.place.part(file.sha256)), str(there))
    lines = run_script(
        board, _PREFIX, arguments, doing=f"check what is there of {file.name}",
        timeout=hash_timeout(there),
    )  # fmt: skip
    found = re.match(r"[0-9a-f]{64}", lines[0]) if lines else None
    return there if found and found[0] == _hash_prefix(local, there) else 0


def _send_verified(
    board: Board, local: Path, file: BundleFile, *, place: Place, offset: int
) -> int:
    """Upload and seal one file; what arrives damaged is removed and sent once more."""
    sent = 0
    outcome = ""
    for start in (offset, 0):
        if start < file.size:
            _put_part(board, local, file, place=place, offset=start)
            sent += file.size - start
        outcome = _seal(board, file, place)
        if outcome == "sealed":
            return sent
    raise DeployFailed(
        f"{file.name} arrived damaged on {board.name}, twice",
        why=_describe_damage(outcome, file),
        fix="free some space on the board, and check its storage and its network",
    )


def _describe_damage(outcome: str, file: BundleFile) -> str:
    size = outcome.removeprefix("differs ")
    if size.isdecimal() and int(size) < file.size:
        return f"{size} of {file.size} bytes were stored: is the disk full?"
    return f"its SHA-256 on the board is not {file.sha256[:16]}, of {size} bytes"


def _put_part(board: Board, local: Path, file: BundleFile, *, place: Place, offset: int) -> None:
    part = place.part(file.sha256)
    timeout = link_timeout(file.size - offset)
    try:
        board.put(local, part, offset=offset, timeout=timeout)
    except (BoardUnreachable, Interrupted):
        # What arrived stays, so that the next deploy resumes it.
        raise
    except (EdgeoptError, OSError) as error:
        rest = (str(part), str(place.chunks(file.sha256, coming=True)))
        run_script(board, _REMOVE, rest, doing=f"remove the rest of {file.name}")
        raise DeployFailed(
            f"could not store {file.name} on {board.name}",
            why=str(error),
            fix="free some space on the board, and check its storage",
        ) from error


def _seal(
    board: Board, file: BundleFile, place: Place, *, part: PurePosixPath | None = None
) -> str:
    arguments = (
        str(part or place.part(file.sha256)),
        str(place.object(file.sha256)),
        file.sha256,
        "500" if file.executable else "400",
    )
    lines = run_script(
        board, _SEAL, arguments, doing=f"verify {file.name}", timeout=hash_timeout(file.size)
    )
    return lines[-1] if lines else ""
