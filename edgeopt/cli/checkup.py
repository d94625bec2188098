"""What edgeopt needs of this machine, looked up without importing any of it."""

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from edgeopt.board.facts import BoardFacts
    from edgeopt.target import Target

#: Bytes: the smallest bundle with its way back, and what stays for the system.
_LEAST_FREE = 64_000_000
_LEAST_MEMORY = 32_000_000
#: Bytes of results beyond which they are worth a look.
_MOST_CACHED = 10_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """One part: whether it is here, what was found, and how to get it."""

    part: str
    ok: bool
    found: str
    fix: str
    required: bool = True

    @property
    def verdict(self) -> Literal["pass", "warn", "fail"]:
        """What is required and not there is a fail; what merely helps, a warning."""
        if self.ok:
            return "pass"
        return "fail" if self.required else "warn"


def examine() -> list[Finding]:
    """Look at the compiler, the cross linker, the exporter and the emulator."""
    return [
        _exact("compiler", "apache-tvm", "0.27.0.post1"),
        _exact("compiler's interface", "apache-tvm-ffi", "0.1.14.post0"),
        _package("oracle", "onnxruntime", "pip install --upgrade edgeopt"),
        _package("cross compiler", "ziglang", "pip install --upgrade edgeopt"),
        _package("export of torch modules", "torch", "pip install 'edgeopt[train]'", False),
        _package("export of torch modules", "onnxscript", "pip install 'edgeopt[train]'", False),
        _programs(
            "emulated board",
            ("qemu-system-aarch64", "mke2fs", "dpkg-deb", "apt-get"),
            "sudo apt-get install qemu-system-arm e2fsprogs",
        ),
        _programs("shell on an emulated board", ("ssh",), "sudo apt-get install openssh-client"),
    ]


def judge_cache(sizes: "Mapping[str, int]", free: int) -> Finding:
    """Say what earlier runs left, in bytes by stage, and what is free beside it."""
    from edgeopt.units import format_bytes

    held = sum(sizes.values())
    return Finding(
        "cache",
        held <= _MOST_CACHED,
        f"{format_bytes(held)} of results, {format_bytes(free)} free; unused ones go after 30 days",
        "edgeopt cache shows what they are, edgeopt cache --clear forgets them",
        required=False,
    )


def _exact(part: str, name: str, version: str) -> Finding:
    fix = f"pip install '{name}=={version}'"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(part, False, f"no package {name}", fix)
    return Finding(part, found == version, f"{name} {found}", fix)


def _package(part: str, name: str, fix: str, required: bool = True) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(part, False, f"no package {name}", fix, required)
    return Finding(part, True, f"{name} {metadata.version(name)}", fix, required)


def _programs(part: str, names: Sequence[str], fix: str) -> Finding:
    missing = [name for name in names if shutil.which(name) is None]
    found = f"missing {', '.join(missing)}" if missing else ", ".join(names)
    return Finding(part, not missing, found, fix, required=False)


def judge_board(target: "Target | None", facts: "BoardFacts") -> list[Finding]:
    """Compare what a board says of itself with what the target's code needs.

    Without a target nothing is said of its processor.
    """
    return [*(_judge_processor(target, facts) if target else ()), *_judge_resources(facts)]


def _judge_processor(target: "Target", facts: "BoardFacts") -> list[Finding]:
    probe = "choose another target, or write one: edgeopt targets probe"
    wanted = target.isa.machine
    findings = [
        Finding(
            "machine", facts.machine == wanted, f"{facts.machine}, the target's is {wanted}", probe
        )
    ]
    absent = sorted(set(target.isa.features) - set(facts.features))
    have = f"lacks {', '.join(absent)}" if absent else "has all of the target's features"
    findings.append(Finding("instructions", not absent, have, probe))
    if target.software.linkage == "dynamic":
        need = target.software.glibc or "2.17"
        findings.append(
            Finding(
                "C library",
                _version(facts.glibc) >= _version(need),
                f"glibc {facts.glibc or 'is not there'}, the target says {need}",
                "set software.glibc of the target to the board's, or use static linkage",
            )
        )
    return findings


def _judge_resources(facts: "BoardFacts") -> list[Finding]:
    from edgeopt.units import format_bytes

    elsewhere = "let this account write and run programs in its home folder"
    usable = facts.writable and facts.executable
    able = "can be written, and programs run there" if usable else "is read-only or noexec"
    return [
        Finding("folder", usable, f"{facts.folder} {able}", elsewhere),
        Finding(
            "storage",
            facts.free >= _LEAST_FREE,
            f"{format_bytes(facts.free)} free",
            "free some space: a release, and the one before it, must fit",
            required=False,
        ),
        Finding(
            "memory",
            facts.ram_available >= _LEAST_MEMORY,
            f"{format_bytes(facts.ram_available)} of {format_bytes(facts.ram_total)} available",
            "stop other programs on the board",
            required=False,
        ),
        Finding(
            "clock",
            set(facts.governors) <= {"performance"},
            f"governor {', '.join(sorted(set(facts.governors))) or 'unknown, or none'}",
            "for latencies that repeat, set the governor to 'performance'",
            required=False,
        ),
    ]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(".") if each.isdecimal())
