"""What a board says of itself, asked in one round trip, and the target file made of it."""

import datetime
import json
from pathlib import PurePosixPath

from edgeopt.board import Board
from edgeopt.board.procfs import BoardFacts, Processor, parse_facts, parse_sections
from edgeopt.errors import BoardIncompatible, visible

__all__ = ["BoardFacts", "probe_target", "read_facts"]

#: Begins a section of the script's output.
_MARK = "@@edgeopt"

#: Works with busybox alone. $1 is the folder that is asked for; it need not exist.
_SCRIPT = f"""\
s() {{ echo; echo "{_MARK} $1"; }}
exec 2>/dev/null
s machine; uname -m
s kernel; uname -sr
s program; od -An -tx1 -N20 /proc/self/exe
s model; cat /proc/device-tree/model ||
  echo "$(cat /sys/class/dmi/id/sys_vendor) $(cat /sys/class/dmi/id/product_name)"
s cpuinfo; cat /proc/cpuinfo
s meminfo; cat /proc/meminfo
s boot; cat /proc/sys/kernel/random/boot_id
s uptime; cat /proc/uptime
s page; getconf PAGESIZE || grep -m1 KernelPageSize /proc/self/smaps | tr -s ' ' | cut -d' ' -f2-
s glibc; getconf GNU_LIBC_VERSION || ldd --version ||
  for f in /lib/*/libc.so.6 /lib64/libc.so.6 /lib/libc.so.6; do
    if [ -x "$f" ]; then "$f" && break; fi
  done
s folder; d=$1
case $d in /*) ;; *) d=$PWD/$d ;; esac
while [ ! -d "$d" ]; do d=${{d%/*}}; [ "$d" ] || d=/; done
d=$(cd "$d" && pwd -P); echo "$d"
s writable; if [ -w "$d" ]; then echo yes; else echo no; fi
s space; df -Pk "$d"
s mounts; cat /proc/mounts
s caches
for c in /sys/devices/system/cpu/cpu[0-9]*/cache/index*; do
  n=${{c%/cache/*}}
  echo "${{n##*/}} $(cat "$c/level") $(cat "$c/type") $(cat "$c/size") $(cat "$c/shared_cpu_list")"
done
s clocks
for p in /sys/devices/system/cpu/cpufreq/policy*; do
  echo "$(cat "$p/cpuinfo_max_freq") $(cat "$p/scaling_governor"): $(cat "$p/related_cpus")"
done
s temperatures
for t in /sys/class/thermal/thermal_zone*; do echo "$(cat "$t/type") $(cat "$t/temp")"; done
s end
"""

#: Cores of which QEMU 7.2 has a model.
_EMULATED = ("cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72", "cortex-a76", "neoverse-n1")


_HOME = PurePosixPath()


def read_facts(board: Board, *, folder: PurePosixPath = _HOME, timeout: float = 60.0) -> BoardFacts:
    """Ask the board; folder (home by default) is the one whose space and rights are told.

    Raises BoardIncompatible when it is not a Linux system with /proc.
    """
    place = str(folder).removeprefix("~/")
    done = board.run(["sh", "-c", _SCRIPT, "sh", place], timeout=timeout)
    text = visible(done.stdout.decode(errors="replace"))
    sections = parse_sections(text, _MARK)
    try:
        if "end" not in sections:
            raise ValueError(f"the answer ends early, with status {done.status}")  # noqa: TRY301
        return parse_facts(sections)
    except (KeyError, ValueError, IndexError) as error:
        raise BoardIncompatible(
            f"{board.name}: it does not say what it is",
            why=f"{error}; it answered {text[:200]!r}",
            fix="edgeopt needs a Linux system with /proc mounted and a POSIX shell",
        ) from error


def probe_target(
    facts: BoardFacts, *, name: str, board: str = "", on: datetime.date | None = None
) -> str:
    """Write the target file of a live board, each value with its source; unknown stays absent."""
    day = (on or datetime.datetime.now(tz=datetime.UTC).date()).isoformat()
    lines = [
        f"# Read from {_printable(board) or 'a live board'} on {day} by 'edgeopt targets probe'.",
        f"name = {_text(name)}",
        f"title = {_text(facts.model or name)}" + _source("device tree or DMI", day),
        "",
        "[isa]",
        f"machine = {_text(facts.machine)}" + _source("ELF header of /proc/self/exe", day),
        f"features = [{', '.join(map(_text, facts.features))}]" + _source("/proc/cpuinfo", day),
    ]
    for group in _clusters(facts):
        lines += ["", *_cluster(group, facts, day)]
    lines += [
        "",
        "[memory]",
        # What the kernel leaves to programs: less than what is soldered in.
        f'ram = "{facts.ram_total // 1024} KiB"' + _source("MemTotal of /proc/meminfo", day),
        *_shared_cache(facts, day),
        f'page = "{facts.page_size // 1024} KiB"' + _source("getconf PAGESIZE", day),
        "",
        "[software]",
    ]
    if facts.glibc:
        lines.append(f"glibc = {_text(facts.glibc)}" + _source("getconf GNU_LIBC_VERSION", day))
    else:
        lines.append('linkage = "static"' + _source("no glibc was found", day))
    first = _clusters(facts)[0][0].core if facts.processors else ""
    if facts.machine == "aarch64" and first in _EMULATED:
        lines += ["", "[emulation]", f"cpu = {_text(first)}  # the same core in QEMU"]
    return "\n".join(lines) + "\n"


def _clusters(facts: BoardFacts) -> list[list[Processor]]:
    """Group the processors by core and clock, the fastest first: models run there."""
    groups: dict[tuple[str, int], list[Processor]] = {}
    for each in facts.processors:
        groups.setdefault((each.part, each.max_khz or 0), []).append(each)
    return [group for _, group in sorted(groups.items(), key=lambda item: -item[0][1])]


def _cluster(group: list[Processor], facts: BoardFacts, day: str) -> list[str]:
    one = group[0]
    core, source = one.core, f"CPU part {one.part} in /proc/cpuinfo"
    if facts.machine == "x86_64":
        core, source = _x86_level(facts.features), f"flags in /proc/cpuinfo ({one.part})"
    lines = [
        "[[cluster]]",
        f"core = {_text(core or 'generic')}" + _source(source, day),
        f"count = {len(group)}" + _source("/proc/cpuinfo", day),
    ]
    if one.max_khz:
        lines.append(f'clock = "{one.max_khz / 1000:g} MHz"' + _source("cpuinfo_max_freq", day))
    where = _source("/sys/devices/system/cpu", day)
    # Threads of one core share its first cache too: that does not make the second one shared.
    alone: set[int] = set()
    for cache in one.caches:
        if cache.level == 1 and cache.type == "Data":
            alone = set(cache.shared_by)
            lines.append(f'l1d = "{cache.size // 1024} KiB"' + where)
        if cache.level == 2:
            lines.append(f'l2 = "{cache.size // 1024} KiB"' + where)
            shared = set(cache.shared_by) > alone
            lines.append(f"l2_shared = {str(shared).lower()}" + where)
    return lines


def _shared_cache(facts: BoardFacts, day: str) -> list[str]:
    sizes = [each.size for one in facts.processors for each in one.caches if each.level == 3]
    where = _source("/sys/devices/system/cpu", day)
    return [f'l3 = "{max(sizes) // 1024} KiB"' + where] if sizes else []


def _x86_level(features: tuple[str, ...]) -> str:
    """Name the level of the x86-64 psABI (version 1.0, table 3.1), which LLVM knows as a CPU."""
    have = set(features)
    if {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"} <= have:
        return "x86-64-v4"
    if {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"} <= have:
        return "x86-64-v3"
    if {"cx16", "popcnt", "sse4_1", "sse4_2", "ssse3"} <= have:
        return "x86-64-v2"
    return "x86-64"


def _source(where: str, day: str) -> str:
    return f"  # {_printable(where)}, {day}"


def _printable(text: str) -> str:
    """Make a comment's text of what a board says of itself: TOML forbids control characters."""
    return "".join(each if each.isprintable() else " " for each in text)


def _text(value: str) -> str:
    """Write a TOML basic string; JSON's escapes are a subset of TOML's, DEL aside."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
