"""Know before a byte is sent whether a board can run a bundle."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from edgeopt.artifact import Bundle, BundleFile
from edgeopt.board import Board
from edgeopt.board.facts import BoardFacts
from edgeopt.board.script import run_script
from edgeopt.deploy.chunks import MOST_CHUNKS, Chunk, parse_list
from edgeopt.deploy.place import (
    Place,
    check_digest,
    check_name,
    check_root,
    known_digest,
    parse_free,
)
from edgeopt.errors import BoardIncompatible, BudgetExceeded, ConfigError, DeployFailed
from edgeopt.units import format_bytes

#: Name of the bundle's manifest; its SHA-256 is the release's digest.
MANIFEST = "manifest.json"
#: What else lies in a release's folder: its files' digests, and what is known of it.
OURS = frozenset({"boot", "sha256sums", "statement", "statement.sig", "unproven"})
#: Memory left to the system besides the model, so that the board keeps answering.
RAM_RESERVE = 16_000_000
#: Folders, links, history, and the run folder with its inputs and outputs.
_DISK_RESERVE = 2_000_000
_BLOCK = 4096

_SURVEY = r"""
root=$1 app=$2 digest=$3; shift 3
case $root in '~') root=$(pwd);; '~/'*) root=$(pwd)/${root#'~/'};; esac
here=$root
while [ ! -d "$here" ]; do
    if [ -e "$here" ]; then echo "obstacle $here"; fi
    here=$(dirname "$here")
done
echo "root $root"
echo "real $(cd "$here" && pwd -P)"
if [ -w "$here" ] && [ -x "$here" ]; then echo "writable yes"; fi
home=$root/apps/$app
for each in "$root/objects" "$root/apps" "$home" "$home/releases" "$root/runs"; do
    if [ -L "$each" ]; then echo "obstacle $each"; fi
done
echo "space $(df -Pk "$here" 2>/dev/null | tail -n 1)"
echo "inodes $(df -Pi "$here" 2>/dev/null | tail -n 1)"
command -v sha256sum > /dev/null 2>&1 || echo "lacks sha256sum"
sed 's/^/mount /' /proc/mounts 2>/dev/null || true
has() {
    if [ -f "$root/objects/$1" ] && [ ! -L "$root/objects/$1" ]; then
        echo "has $1 $(size "$root/objects/$1")"
    fi
}
for each in "$@"; do has "$each"; done
for each in "$root"/objects/*.part; do has "${each##*/}"; done
if [ -f "$home/releases/$digest/sha256sums" ]; then
    boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null || true)
    echo "release yes"
    if [ "$(cat "$home/releases/$digest/boot" 2>/dev/null)" = "$boot" ]; then echo "checked yes"; fi
else
    sums=$(cat "$home/current/sha256sums" "$home/previous/sha256sums" 2>/dev/null || true)
    for each in $(echo "$sums" | cut -d ' ' -f 1 | sort -u); do
        if [ -f "$root/objects/$each.chunks" ]; then
            head -n MOST "$root/objects/$each.chunks" | sed "s/^/chunk $each /"
        fi
    done
fi
echo "current $(readlink "$home/current" || true)"
"""

_SURVEY = _SURVEY.replace("MOST", str(MOST_CHUNKS))

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Survey:
    """What a board said about its storage and about what lies there already."""

    place: Place
    #: Bytes and inodes free to us; None where the board cannot tell.
    free_bytes: int | None
    free_inodes: int | None
    writable: bool
    #: Options of the mount that holds the deploy directory: "rw", "noexec".
    mount_options: frozenset[str]
    #: Things that are in the way: a file or a symbolic link where a folder must be.
    obstacles: tuple[str, ...]
    #: Size in bytes by name in objects/: "<sha256>" or "<sha256>.part".
    objects: dict[str, int]
    #: Programs that every deploy needs and the board has not.
    lacks: tuple[str, ...]
    #: Whether this bundle's release is assembled already, and its files are known to be good since
    #: the board's last start.
    installed: bool
    checked: bool
    #: Digest of the release that is current, or "".
    current: str
    #: What the objects of the current and the previous release consist of, by SHA-256.
    chunks: Mapping[str, tuple[Chunk, ...]] = field(default_factory=dict)


def stored_files(bundle: Bundle) -> tuple[BundleFile, ...]:
    """Return every file that lies on the board, the manifest included, names checked."""
    files = {each.name: each for each in bundle.files if each.name != MANIFEST}
    size = (bundle.path / MANIFEST).stat().st_size
    files[MANIFEST] = BundleFile(name=MANIFEST, sha256=bundle.digest, size=size)
    if OURS & files.keys() or "edgeopt-run" not in files:
        raise ConfigError(
            f"{bundle.path} is not a bundle that can be deployed",
            why="it must have the program 'edgeopt-run', "
            f"and nothing called {', '.join(sorted(OURS))}",
        )
    for each in files.values():
        check_name(each.name, "file of a bundle")
        check_digest(each.sha256)
    return tuple(files[name] for name in sorted(files))


def survey_board(
    board: Board, *, root: PurePosixPath, app: str, bundle: Bundle | None = None
) -> Survey:
    """Ask the board, in one round trip and changing nothing, what check_board needs.

    Without a bundle nothing is said of files that are there already.
    """
    check_name(app, "application")
    digests = sorted({each.sha256 for each in stored_files(bundle)}) if bundle else []
    digest = check_digest(bundle.digest) if bundle else "0" * 64
    lines = run_script(
        board,
        _SURVEY,
        (str(check_root(root)), app, digest, *digests),
        doing="read the deploy directory",
    )
    return parse_survey(lines, app)


def parse_survey(lines: Sequence[str], app: str) -> Survey:
    """Read what the survey script printed: one "key value" per line."""
    values: dict[str, list[str]] = {}
    for line in lines:
        key, _, value = line.partition(" ")
        values.setdefault(key, []).append(value)
    single = {key: each[-1] for key, each in values.items()}
    try:
        place = Place(root=check_root(PurePosixPath(single["root"])), app=app)
        real = PurePosixPath(single["real"])
        sized = (each.rsplit(" ", 1) for each in values.get("has", ()))
        objects = {name: int(size) for name, size in sized}
    except (KeyError, ValueError) as error:
        raise DeployFailed("the survey of the board cannot be read", why=str(error)) from error
    return Survey(
        place=place,
        free_bytes=parse_free(single.get("space", ""), unit=1024),
        free_inodes=parse_free(single.get("inodes", "")),
        writable=single.get("writable") == "yes",
        mount_options=parse_mount_options(values.get("mount", ()), real),
        obstacles=tuple(values.get("obstacle", ())),
        objects=objects,
        lacks=tuple(values.get("lacks", ())),
        installed=single.get("release") == "yes",
        checked=single.get("checked") == "yes",
        current=known_digest(PurePosixPath(single.get("current", "")).name),
        chunks=_parse_chunks(values.get("chunk", ())),
    )


def _parse_chunks(lines: Sequence[str]) -> dict[str, tuple[Chunk, ...]]:
    listed: dict[str, list[str]] = {}
    for line in lines:
        sha256, _, rest = line.partition(" ")
        if known_digest(sha256):
            listed.setdefault(sha256, []).append(rest)
    return {sha256: parse_list(each) for sha256, each in listed.items()}


def parse_mount_options(mounts: Sequence[str], path: PurePosixPath) -> frozenset[str]:
    """Return the options of the innermost, latest mount of /proc/mounts that holds path."""
    best: tuple[int, frozenset[str]] = (0, frozenset())
    for line in mounts:
        fields = line.split(" ")
        if len(fields) < 4:
            continue
        point = PurePosixPath(_OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[1]))
        if path.is_relative_to(point) and len(point.parts) >= best[0]:
            best = (len(point.parts), frozenset(fields[3].split(",")))
    return best[1]


def missing_files(bundle: Bundle, survey: Survey) -> tuple[BundleFile, ...]:
    """Return the files whose object is not there with its full size, each content once."""
    if survey.installed:
        return ()
    wanted = {each.sha256: each for each in stored_files(bundle)}
    return tuple(each for sha256, each in wanted.items() if survey.objects.get(sha256) != each.size)


def check_board(bundle: Bundle, facts: BoardFacts, survey: Survey) -> None:
    """Raise BoardIncompatible naming every reason at once why the bundle cannot run there.

    Raise BudgetExceeded when memory is the only one.
    """
    problems = _processor_problems(bundle, facts) + _storage_problems(bundle, survey)
    memory = _memory_problem(bundle, facts)
    if problems:
        reasons = [problem for problem, _ in problems] + ([memory] if memory else [])
        raise BoardIncompatible(
            f"this board cannot run what was compiled for '{bundle.target}'",
            why="; ".join(reasons),
            fix="; ".join(dict.fromkeys(fix for _, fix in problems)),
        )
    if memory:
        raise BudgetExceeded(
            "the model does not fit the memory that the board has free now",
            why=memory,
            fix="stop other programs on the board, or choose a smaller profile",
        )


def _processor_problems(bundle: Bundle, facts: BoardFacts) -> list[tuple[str, str]]:
    probe = "choose a target for this board (see 'edgeopt targets list' and 'targets probe')"
    if bundle.machine != facts.machine:
        return [(f"the code is for {bundle.machine}, the board is {facts.machine}", probe)]
    problems = []
    absent = sorted(set(bundle.features) - set(facts.features))
    if absent:
        problems.append((f"its processor has no {', '.join(absent)}", probe))
    if bundle.glibc and not facts.glibc:
        problems.append(
            (f"the program needs glibc {bundle.glibc}, the board has none", "use static linkage")
        )
    elif bundle.glibc and _version(facts.glibc) < _version(bundle.glibc):
        problems.append(
            (
                f"the program needs glibc {bundle.glibc}, the board has {facts.glibc}",
                "set software.glibc of the target to the board's version, or use static linkage",
            )
        )
    return problems


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _storage_problems(bundle: Bundle, survey: Survey) -> list[tuple[str, str]]:
    root = survey.place.root
    elsewhere = "set deploy_dir to a folder that this account may write and run programs from"
    problems = [
        (f"{each} is in the way (a file or a symbolic link)", f"remove {each}")
        for each in survey.obstacles
    ]
    problems += [
        (f"it has no {each}", f"install coreutils or busybox there, which have {each}")
        for each in survey.lacks
    ]
    if "ro" in survey.mount_options:
        problems.append((f"{root} is on a read-only file system", elsewhere))
    elif not survey.writable:
        problems.append((f"{root} cannot be written by this account", elsewhere))
    if "noexec" in survey.mount_options:
        problems.append((f"{root} is on a file system mounted noexec", elsewhere))
    missing = missing_files(bundle, survey)
    needed = _needed_bytes(missing, survey)
    if survey.free_bytes is not None and survey.free_bytes < needed:
        why = f"{root} needs {format_bytes(needed)}, {format_bytes(survey.free_bytes)} are free"
        problems.append((why, "free some space, or set deploy_dir to another disk"))
    inodes = 2 * len(missing) + 16
    if survey.free_inodes is not None and survey.free_inodes < inodes:
        why = f"{root} needs {inodes} inodes, {survey.free_inodes} are free"
        problems.append((why, "remove small files, or set deploy_dir to another disk"))
    return problems


def _needed_bytes(missing: Sequence[BundleFile], survey: Survey) -> int:
    sent = sum(
        max(each.size - survey.objects.get(f"{each.sha256}.part", 0), 0) + _BLOCK
        for each in missing
    )
    return sent + _DISK_RESERVE


def _memory_problem(bundle: Bundle, facts: BoardFacts) -> str:
    peak = bundle.footprint.peak
    if facts.ram_available - RAM_RESERVE >= peak:
        return ""
    return (
        f"predicted peak {format_bytes(peak)}, but only {format_bytes(facts.ram_available)} of "
        f"{format_bytes(facts.ram_total)} are available and {format_bytes(RAM_RESERVE)} "
        "stay reserved for the system"
    )
