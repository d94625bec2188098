"""What a test needs of its board, in words: "dotprod", "ram>=512MB", "cores>=4", "latency"."""

import re
from collections.abc import Callable, Iterable

from edgeopt.board import Kind
from edgeopt.board.facts import BoardFacts
from edgeopt.errors import ConfigError
from edgeopt.units import format_bytes, parse_bytes

#: Features by the names that people use, on 64-bit Arm as /proc/cpuinfo spells them.
_ALIASES = {
    "dotprod": "asimddp",
    "fp16": "asimdhp",
    "neon": "asimd",
    "lse": "atomics",
    "crypto": "aes",
}
#: Features that some board may have: a word that is none of these was misspelt.
_FEATURES = frozenset(
    {"aes", "amx_int8", "amx_tile"}
    | {"asimd", "asimddp", "asimdfhm", "asimdhp", "atomics", "avx", "avx2", "avx512_vnni"}
    | {"avx512f", "avx_vnni", "bf16", "crc32", "f16c", "fma", "fp", "fphp", "i8mm", "neon"}
    | {"pmull", "sha1", "sha2", "sme", "sse4_2", "sve", "sve2", "vfpv4"}
)
_KINDS: dict[str, tuple[Kind, ...]] = {"latency": ("native", "board"), "device": ("board",)}
_LIMIT = re.compile(r"(ram|free|cores|glibc)\s*>=\s*(\S.*)")
_MACHINES = frozenset({"aarch64", "arm", "x86_64"})


def unmet(needs: Iterable[str], facts: BoardFacts, kind: Kind) -> tuple[str, ...]:
    """Return why a board does not have what is needed; ConfigError for what nobody can have."""
    return tuple(filter(None, (_why_unmet(each.strip(), facts, kind) for each in needs)))


def _why_unmet(need: str, facts: BoardFacts, kind: Kind) -> str:
    if need in _KINDS:
        return "" if kind in _KINDS[need] else f"it needs a {need}, and figures here are {kind}"
    if need in _MACHINES:
        return "" if facts.machine == need else f"the board is {facts.machine}, not {need}"
    if match := _LIMIT.fullmatch(need):
        return _LIMITS[match[1]](match[2], facts)
    feature = _ALIASES.get(need, need)
    # 32-bit kernels call it otherwise.
    if need in facts.features or feature in facts.features:
        return ""
    if feature not in _FEATURES:
        raise ConfigError(
            f"needs({need!r}) is nothing that a board can have",
            why=f"features are {', '.join(sorted(_FEATURES | set(_ALIASES)))}",
            fix="or write ram>=512MB, free>=1GB, cores>=4, glibc>=2.31, aarch64, latency, device",
        )
    return f"the board's processor has no {need}"


def _size(
    have: Callable[[BoardFacts], int], what: str, *, kept: float = 0.0
) -> Callable[[str, BoardFacts], str]:
    def check(text: str, facts: BoardFacts) -> str:
        try:
            limit = parse_bytes(text)
        except ValueError as error:
            raise ConfigError(f"needs(...): {error}", fix="write it like ram>=512MB") from error
        found = have(facts)
        short = f"the board has {format_bytes(found)} of {what}, {format_bytes(limit)} are needed"
        return "" if found >= limit * (1 - kept) else short

    return check


def _cores(text: str, facts: BoardFacts) -> str:
    if not text.isdecimal():
        raise ConfigError(f"needs('cores>={text}') is no number", fix="write it like cores>=4")
    found = len(facts.processors)
    return "" if found >= int(text) else f"the board has {found} cores, {text} are needed"


def _glibc(text: str, facts: BoardFacts) -> str:
    if re.fullmatch(r"\d+(\.\d+)+", text) is None:
        raise ConfigError(f"needs('glibc>={text}') is no version", fix="write it like glibc>=2.31")
    found, wanted = (tuple(map(int, re.findall(r"\d+", each))) for each in (facts.glibc, text))
    return "" if found >= wanted else f"the board has glibc {facts.glibc or 'not at all'}"


_LIMITS: dict[str, Callable[[str, BoardFacts], str]] = {
    # What kernel and firmware keep for themselves counts as well when a board is called by a size.
    "ram": _size(lambda facts: facts.ram_total, "memory", kept=0.2),
    "free": _size(lambda facts: facts.free, "free storage"),
    "cores": _cores,
    "glibc": _glibc,
}
