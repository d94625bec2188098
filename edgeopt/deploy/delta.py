"""Send of a changed file only what no object on the board has, and put it together there."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edgeopt.artifact import BundleFile
from edgeopt.board import Board
from edgeopt.board.script import run_script
from edgeopt.deploy.chunks import SMALLEST_FILE, Piece, cut_file, plan_pieces, write_list
from edgeopt.deploy.place import Place, hash_timeout, link_timeout
from edgeopt.deploy.preflight import Survey

# Parameters: the file to make, then path, offset and size of each range. A range that is not
# there leaves the file short: its digest is then another one.
_JOIN = r"""
made=$1; shift
rm -f "$made"
while [ $# -ge 3 ]; do
    if ! { tail -c "+$(($2 + 1))" "$1" 2>/dev/null | head -c "$3" >> "$made"; }; then
        rm -f "$made" "${made%.join.part}.chunks.part"
        fail "no space for $made"
    fi
    shift 3
done
"""


@dataclass(frozen=True, slots=True)
class Delta:
    """A file of the bundle as ranges of objects on the board and of one file that is sent."""

    #: What is sent: all ranges that are missing there, one after the other.
    payload: BundleFile
    #: The folder of the payload on the host.
    folder: Path
    pieces: tuple[Piece, ...]


def plan_deltas(
    files: Sequence[BundleFile], survey: Survey, *, source: Path, folder: Path
) -> dict[str, Delta]:
    """Plan, by SHA-256, the files that are cheaper to put together; payloads go into folder.

    What was interrupted is resumed instead. Where space is short nothing is sent beside the file.
    """
    planned: dict[str, Delta] = {}
    free = survey.free_bytes
    for each in files:
        if each.size < SMALLEST_FILE or f"{each.sha256}.part" in survey.objects:
            continue
        known = {sha256: listed for sha256, listed in survey.chunks.items() if listed}
        recipe = plan_pieces(cut_file(source / each.name), known) if known else None
        if recipe is None or (free is not None and free < 2 * sum(file.size for file in files)):
            continue
        payload = _write_payload(source / each.name, recipe.sent, folder)
        planned[each.sha256] = Delta(payload, folder, recipe.pieces)
    return planned


def _write_payload(path: Path, ranges: Sequence[tuple[int, int]], folder: Path) -> BundleFile:
    digest = hashlib.sha256()
    draft = folder / "draft"
    with path.open("rb") as stream, draft.open("wb") as output:
        for begin, end in ranges:
            stream.seek(begin)
            data = stream.read(end - begin)
            digest.update(data)
            output.write(data)
    name = digest.hexdigest()
    draft.replace(folder / name)
    return BundleFile(name=name, sha256=name, size=(folder / name).stat().st_size)


def join_pieces(board: Board, place: Place, file: BundleFile, delta: Delta) -> PurePosixPath:
    """Put a file together on the board and return where; the caller verifies its digest."""
    made = place.root / "objects" / f"{file.sha256}.join.part"
    arguments = [str(made)]
    for each in delta.pieces:
        path = place.object(each.source or delta.payload.sha256)
        arguments += [str(path), str(each.offset), str(each.size)]
    run_script(
        board, _JOIN, arguments, doing=f"put {file.name} together",
        timeout=hash_timeout(file.size),
    )  # fmt: skip
    return made


def send_list(board: Board, place: Place, file: BundleFile, local: Path, folder: Path) -> None:
    """Send the list of a file's chunks, so that the next version of it can be a delta."""
    written = folder / "chunks"
    written.write_text(write_list(cut_file(local)))
    timeout = link_timeout(written.stat().st_size)
    board.put(written, place.chunks(file.sha256, coming=True), timeout=timeout)


def deltas_to_come(deltas: Mapping[str, Delta]) -> tuple[BundleFile, ...]:
    """Return the payloads, whose interrupted uploads are to stay."""
    return tuple(each.payload for each in deltas.values())
