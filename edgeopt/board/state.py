"""What a board tells of itself around a run: whether it restarted, and what else went on there."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgeopt.board.script import printable

#: For run_script. EDGEOPT_SYS names a folder in the place of /sys: boards of the tests are files.
#: A Raspberry Pi whose kernel has no file for the flags of its firmware has a program that asks.
STATE = r"""
sys=${EDGEOPT_SYS:-/sys}
echo "boot $(cat /proc/sys/kernel/random/boot_id)"
sed -n 's/^MemAvailable: *\([0-9]*\) kB$/available \1/p' /proc/meminfo
sed -n 's/^oom_kill /oom_kill /p' /proc/vmstat
for each in "$sys"/devices/system/cpu/cpufreq/policy*/scaling_governor; do
    if [ -r "$each" ]; then echo "governor $(cat "$each")"; fi
done
file=
for each in "$sys"/devices/platform/soc*/soc*:firmware/get_throttled; do
    if [ -r "$each" ]; then file=$each; fi
done
if [ -z "$file" ]; then
    (PATH=$PATH:/opt/vc/bin; vcgencmd get_throttled) 2>/dev/null |
        sed -n 's/^throttled=/throttled /p'
fi
sed 's/ .*//; s/^/load /' /proc/loadavg 2>/dev/null || true
sed 's/ .*//; s/^/uptime /' /proc/uptime 2>/dev/null || true
sed -n 's/^some .*total=/pressure /p' /proc/pressure/cpu 2>/dev/null || true
"""


@dataclass(frozen=True, slots=True)
class BoardState:
    """What tells whether the board rebooted or ran out of memory meanwhile."""

    boot_id: str
    #: Bytes; None where the kernel does not say.
    available: int | None
    #: Kills by the kernel since boot; None where it does not count them.
    oom_kills: int | None
    governors: tuple[str, ...] = ()
    #: The load average of a minute, and seconds since boot; None where unknown.
    load: float | None = None
    uptime: float | None = None
    #: Microseconds since boot that something waited for a processor; None where not counted.
    pressure_us: int | None = None
    #: The firmware's flags, where a program tells them and no file; None otherwise.
    throttled: str | None = None


def read_state(lines: Sequence[str]) -> BoardState:
    """Read what STATE printed; what is missing or makes no sense is unknown."""
    values = dict(line.split(" ", 1) for line in lines if " " in line)
    available = values.get("available", "")
    kills, pressure = values.get("oom_kill", ""), values.get("pressure", "")
    throttled = values.get("throttled", "")
    return BoardState(
        boot_id=values.get("boot", ""),
        available=int(available) * 1024 if available.isdecimal() else None,
        oom_kills=int(kills) if kills.isdecimal() else None,
        governors=tuple(
            printable(line.partition(" ")[2].encode(), 40)
            for line in lines
            if line.startswith("governor ")
        ),
        load=_decimal(values.get("load", "")),
        uptime=_decimal(values.get("uptime", "")),
        pressure_us=int(pressure) if pressure.isdecimal() and len(pressure) < 19 else None,
        throttled=throttled if re.fullmatch("0x[0-9a-f]{1,16}", throttled) else None,
    )


def _decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,6})?", text) else None
