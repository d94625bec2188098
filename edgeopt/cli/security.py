"""What edgeopt doctor says of keys, memory limits and of the code that would be pushed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.cli.checkup import Finding
from edgeopt.errors import ConfigError

if TYPE_CHECKING:
    from edgeopt.board import Board
    from edgeopt.board.canary import MemoryLimits
    from edgeopt.board.destination import Hop
    from edgeopt.deploy import Status
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


def judge_bundle(target: "Target", folder: Path) -> list[Finding]:
    """Scan every program of a bundle for what the target's processor or C library lacks.

    folder: as edgeopt compile -o writes it. Instructions are looked at for 64-bit Arm and x86-64.
    """
    from edgeopt.runner import needed_glibc
    from edgeopt.runner.elf import elf_machine
    from edgeopt.runner.instructions import SCANNED, used_features

    programs = [path for path in sorted(folder.glob("*")) if _is_program(path)]
    if not programs:
        raise ConfigError(
            f"{folder} holds no compiled model", fix="edgeopt compile --target rpi4 -o out"
        )
    again = f"compile it for this target: edgeopt compile --target {target.name} -o {folder}"
    findings = []
    for path in programs:
        machine, wanted = elf_machine(path), target.isa.machine
        found = f"code for {machine}, the target's is {wanted}"
        findings.append(Finding(path.name, machine == wanted, found, again))
        needs, have = needed_glibc(path), target.software.glibc
        if needs and have:
            fits = _version(needs) <= _version(have)
            findings.append(
                Finding(f"{path.name}: C library", fits, f"needs glibc {needs} of {have}", again)
            )
        used = used_features(path)
        absent = {name: count for name, count in used.items() if not _has(target, name)}
        listed = ", ".join(f"{count} of {name}" for name, count in sorted(absent.items()))
        seen = f"uses {', '.join(sorted(used)) or 'no optional ones'}"
        if machine not in SCANNED:
            seen = f"not looked at for {machine}"
        what = f"the processor lacks {listed}" if absent else seen
        findings.append(Finding(f"{path.name}: instructions", not absent, what, again))
    return findings


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
