"""What edgeopt doctor says of keys, memory limits and of the code that would be pushed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.cli.checkup import Finding
from edgeopt.errors import ConfigError

if TYPE_CHECKING:
    from edgeopt.artifact import Bundle
    from edgeopt.board import Board
    from edgeopt.board.canary import MemoryLimits
    from edgeopt.board.destination import Hop
    from edgeopt.deploy import Status
    from edgeopt.store import Store
    from edgeopt.target import Target

_LIMITS: "dict[MemoryLimits, str]" = {
    "enforced": "the kernel kills what exceeds a limit (tried)",
    "ignored": "a limit was set, exceeded, and nothing happened",
    "forbidden": "this account may set none",
    "absent": "no memory controller of cgroup v2",
}


def judge_limits(found: "MemoryLimits") -> Finding:
    """Say whether the board could enforce a memory limit; edgeopt itself only measures."""
    return Finding(
        "memory limits",
        found == "enforced",
        _LIMITS[found],
        "budgets are measured all the same; for limits boot with cgroup_enable=memory, as root",
        required=False,
    )


def judge_route(route: "Sequence[Hop]") -> list[Finding]:
    """Look at the keys with which each hop lets us in, and at what is known of its own."""
    from edgeopt.board.known_hosts import read_known_keys

    findings = []
    for hop in route:
        known = read_known_keys(hop.known_hosts, hop.known_as)
        trusted = sum(not each.revoked for each in known)
        where = next((path for path in hop.known_hosts if path.is_file()), hop.known_hosts[0])
        findings.append(
            Finding(
                f"host key of {hop.label}",
                trusted > 0,
                f"{trusted} known" if trusted else f"{where} has none of {hop.known_as}",
                f"connect once with ssh and compare the fingerprint: ssh -p {hop.port} "
                f"{hop.user}@{hop.host}",
                required=False,
            )
        )
        findings += [_judge_key(path) for path in hop.identities if path.is_file()]
        findings += [_judge_known(path) for path in hop.known_hosts if path.is_file()]
    return list(dict.fromkeys(findings))


def _judge_key(path: Path) -> Finding:
    mode = path.stat().st_mode
    weak = _weakness(path)
    open_to = "other accounts may read it" if mode & 0o077 else ""
    return Finding(
        f"key {path}",
        not weak and not open_to,
        "; ".join(filter(None, (open_to, weak))) or "for this account alone",
        f"chmod 600 {path}" if open_to else "make a new one: ssh-keygen -t ed25519",
        required=False,
    )


def _weakness(path: Path) -> str:
    """Say why a key's kind should not be used any more, as far as its public half tells."""
    public = path if path.suffix == ".pub" else path.with_name(f"{path.name}.pub")
    try:
        kind = public.read_text(errors="replace").split()[0]
    except (OSError, IndexError):
        return ""
    return "DSA is not accepted any more" if kind == "ssh-dss" else ""


def _judge_known(path: Path) -> Finding:
    writable = path.stat().st_mode & 0o022
    return Finding(
        f"known hosts {path}",
        not writable,
        "other accounts may write it" if writable else "only its owner writes it",
        f"chmod go-w {path}",
        required=False,
    )


def describe_signature(
    board: "Board", status: "Status", allowed: str | None, *, check: bool
) -> str:
    """Say in words whether the current release is signed, and, when asked, whether that holds.

    allowed: the lines of those whose signatures count here; without them the board's own count.
    """
    from edgeopt.deploy.signature import read_signers, verify_release
    from edgeopt.deploy.status import place_from
    from edgeopt.errors import DeployFailed

    board_asks = f"; the board asks for one of {status.signers}" if status.signers else ""
    if not status.current or status.serial is None:
        return f"none{board_asks}"
    said = f"serial {status.serial}{board_asks}"
    if not check:
        return f"{said}; not verified (--check)"
    place, by = place_from(status), "the project's signers"
    if allowed is None:
        allowed, by = read_signers(board, place), "the board's signers"
    try:
        verify_release(board, place, status.current, allowed)
    except DeployFailed as error:
        return f"DOES NOT HOLD: {error.why}{board_asks}"
    return f"{said}; verified here, by {by}"


def find_pushed(target: "Target", project: Path, store: "Store") -> "list[Bundle]":
    """Return what the project's last deploy to such a board sent, as far as the cache has it.

    Without a deploy it is what was compiled last for the target, of whatever project.
    """
    from edgeopt.artifact import Bundle
    from edgeopt.cli.request import last_report

    report = last_report(project, target.name)
    rows = report.rows if report is not None else ()
    sent = {row.measurement.digest for row in rows if row.measurement is not None}

    def is_one(each: Bundle) -> bool:
        # A cache that was moved has its results elsewhere.
        wanted = each.digest in sent or (report is None and each.target == target.name)
        return wanted and each.path.is_dir()

    found = {each.digest: each for each in store.every("compile", Bundle, where=is_one)}
    return list(found.values()) if report is not None else list(found.values())[-1:]


def judge_pushed(target: "Target", bundles: "Sequence[Bundle]") -> list[Finding]:
    """Scan what would be pushed; where nothing is there to be scanned, that is said."""
    if not bundles:
        return [
            Finding(
                "code",
                False,
                f"not looked at: nothing that is compiled for {target.name} is here",
                f"edgeopt compile --target {target.name} -o out, then add --bundle out",
                required=False,
            )
        ]
    return [
        found
        for each in bundles
        for found in judge_bundle(target, each.path, name=f"{each.digest[:12]}/")
    ]


def judge_bundle(target: "Target", folder: Path, *, name: str = "") -> list[Finding]:
    """Scan every program of a bundle for what the target's processor or C library lacks.

    folder: as edgeopt compile -o writes it; name: what its programs' are said to begin with.
    Instructions are looked at for 64-bit Arm and x86-64.
    """
    programs = [path for path in sorted(folder.glob("*")) if _is_program(path)]
    if not programs:
        raise ConfigError(
            f"{folder} holds no compiled model", fix="edgeopt compile --target rpi4 -o out"
        )
    again = f"compile it for this target: edgeopt compile --target {target.name} -o out"
    findings = []
    for path in programs:
        findings += [
            _judge_machine(target, path, again),
            *_judge_library(target, path, again),
            _judge_symbols(path, folder),
            _judge_instructions(target, path, again),
        ]
    return [replace(each, part=f"{name}{each.part}") for each in findings]


def _judge_machine(target: "Target", path: Path, again: str) -> Finding:
    from edgeopt.runner.elf import elf_machine

    machine, wanted = elf_machine(path), target.isa.machine
    found = f"code for {machine}, the target's is {wanted}"
    return Finding(path.name, machine == wanted, found, again)


def _judge_library(target: "Target", path: Path, again: str) -> list[Finding]:
    from edgeopt.runner import needed_glibc

    needs, have = needed_glibc(path), target.software.glibc
    if not needs or not have:
        return []
    fits = _version(needs) <= _version(have)
    return [Finding(f"{path.name}: C library", fits, f"needs glibc {needs} of {have}", again)]


def _judge_symbols(path: Path, folder: Path) -> Finding:
    """Look up what a file calls, in the program that opens it where both are there."""
    from edgeopt.runner.elf import is_listed, undefined_symbols
    from edgeopt.runner.program import PROGRAM, unresolved_symbols

    part, program = f"{path.name}: symbols", folder / PROGRAM
    if not is_listed(path):
        return _not_looked_at(part, "it has no list of its sections")
    beside = program if path != program and _is_program(program) else None
    absent = unresolved_symbols(path, beside)
    count = len(undefined_symbols(path))
    found = f"each of the {count} that it calls is there" if count else "it calls no library"
    if absent:
        found = f"calls what no board has: {', '.join(absent[:10])}"
    fix = "report this: it is a missing kernel or runtime function"
    return Finding(part, not absent, found, fix)


def _judge_instructions(target: "Target", path: Path, again: str) -> Finding:
    from edgeopt.runner.elf import elf_machine, is_listed
    from edgeopt.runner.instructions import SCANNED, used_features

    part, machine = f"{path.name}: instructions", elf_machine(path)
    if machine not in SCANNED:
        return _not_looked_at(part, f"those of {machine} are not known here")
    if not is_listed(path):
        return _not_looked_at(part, "it has no list of its sections")
    used = used_features(path)
    absent = {name: count for name, count in used.items() if not _has(target, name)}
    listed = ", ".join(f"{count} of {name}" for name, count in sorted(absent.items()))
    seen = f"uses {', '.join(sorted(used)) or 'no optional ones'}"
    what = f"the processor lacks {listed}" if absent else seen
    return Finding(part, not absent, what, again)


def _not_looked_at(part: str, why: str) -> Finding:
    """Make a warning of it: what was not scanned is no pass."""
    return Finding(
        part,
        False,
        f"not looked at: {why}",
        "a deploy tries it on the board before it is kept",
        required=False,
    )


def _has(target: "Target", feature: str) -> bool:
    """Whether the target's processor has a feature; SHA-1 and SHA-2 have one class of encodings."""
    names = {"sha2": ("sha1", "sha2")}.get(feature, (feature,))
    return any(name in target.isa.features for name in names)


def _is_program(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(4) == b"\x7fELF"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(".") if each.isdecimal())
