"""What /proc and /sys say of a board, as data; every parser is pure.

Core numbers: linux/arch/arm64/include/asm/cputype.h and arch/arm/include/asm/cputype.h, which
repeat Arm's technical reference manuals (MIDR_EL1.PartNum). Core names: LLVM's -mcpu.
"""

import re
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

#: Implementer 0x41 is Arm Limited.
_ARM = "0x41"
#: Part number as /proc/cpuinfo has it, and LLVM's name of the core.
CORES = {
    "0xc05": "cortex-a5",
    "0xc07": "cortex-a7",
    "0xc08": "cortex-a8",
    "0xc09": "cortex-a9",
    "0xc0e": "cortex-a17",
    "0xc0f": "cortex-a15",
    "0xd01": "cortex-a32",
    "0xd02": "cortex-a34",
    "0xd03": "cortex-a53",
    "0xd04": "cortex-a35",
    "0xd05": "cortex-a55",
    "0xd07": "cortex-a57",
    "0xd08": "cortex-a72",
    "0xd09": "cortex-a73",
    "0xd0a": "cortex-a75",
    "0xd0b": "cortex-a76",
    "0xd0c": "neoverse-n1",
    "0xd0d": "cortex-a77",
    "0xd40": "neoverse-v1",
    "0xd41": "cortex-a78",
    "0xd42": "cortex-a78ae",
    "0xd44": "cortex-x1",
    "0xd46": "cortex-a510",
    "0xd47": "cortex-a710",
    "0xd48": "cortex-x2",
    "0xd49": "neoverse-n2",
    "0xd4b": "cortex-a78c",
    "0xd4c": "cortex-x1c",
    "0xd4d": "cortex-a715",
    "0xd4e": "cortex-x3",
    "0xd4f": "neoverse-v2",
    "0xd80": "cortex-a520",
    "0xd81": "cortex-a720",
    "0xd82": "cortex-x4",
}

#: ELF e_machine, of which a board's own programs are (System V ABI).
_ELF = {0x28: "arm", 0x3E: "x86_64", 0xB7: "aarch64", 0xF3: "riscv64", 0x03: "i386"}

#: What every 64-bit Arm processor has when it runs 32-bit programs (Arm ARM, DDI 0487, G1):
#: a 64-bit kernel's /proc/cpuinfo lists the 64-bit names only.
_IN_32_BIT = ("half", "thumb", "vfp", "vfpv3", "vfpv4", "vfpd32", "neon", "idiva", "idivt", "lpae")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cache(_Table):
    """One cache as a processor sees it; size in bytes."""

    level: int
    #: "Data", "Instruction" or "Unified".
    type: str
    size: int
    #: Numbers of the processors that share it.
    shared_by: tuple[int, ...]


class Processor(_Table):
    """One logical processor; absent values could not be read."""

    number: int
    #: LLVM's name of the core; "" when the part is not in the table, and on x86.
    core: str
    #: As /proc/cpuinfo spells them ("0x41 0xd08"), or the x86 model name.
    part: str
    features: tuple[str, ...]
    max_khz: int | None = None
    caches: tuple[Cache, ...] = ()


class BoardFacts(_Table):
    """What a live board says of itself, read in one go."""

    #: Of its programs, which may be 32-bit under a 64-bit kernel: "aarch64", "arm", "x86_64".
    machine: str
    kernel_machine: str
    kernel: str
    #: What the device tree or the firmware calls the board; "" when neither does.
    model: str
    #: Features that every processor has.
    features: tuple[str, ...]
    processors: tuple[Processor, ...]
    #: "2.36"; "" when there is no glibc (musl, or static programs only).
    glibc: str
    ram_total: int
    ram_available: int
    swap_total: int
    page_size: int
    boot_id: str
    uptime: float
    #: The folder that was asked for: its nearest parent that exists, bytes free for this user,
    #: whether this user may write there and whether programs may run from there.
    folder: str
    free: int
    writable: bool
    executable: bool
    #: Millidegrees as {zone type: value}, as the kernel reports them.
    temperatures: dict[str, int]
    #: Governors of the clock, one per policy.
    governors: tuple[str, ...]

    @property
    def cores(self) -> int:
        """How many processors are online."""
        return len(self.processors)


def parse_sections(text: str, mark: str) -> dict[str, str]:
    """Split the facts script's output at its lines "MARK NAME"."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if line.startswith(f"{mark} "):
            current = sections.setdefault(line.removeprefix(f"{mark} ").strip(), [])
        else:
            current.append(line)
    return {name: "\n".join(lines) for name, lines in sections.items()}


def parse_cpuinfo(text: str, *, machine: str) -> tuple[Processor, ...]:
    """Read /proc/cpuinfo of an Arm or x86 kernel, for programs of the given machine.

    32-bit Arm kernels list the features of each processor as the 64-bit ones do; some list one
    "Processor" line before the first number.
    """
    processors: list[Processor] = []
    for block in re.split(r"(?m)^(?=processor\s*:)", text):
        found = {
            name.strip(): value.strip()
            for name, _, value in (line.partition(":") for line in block.splitlines())
        }
        if not found.get("processor", "").isdigit():
            continue
        words = (found.get("Features") or found.get("flags") or "").split()
        if machine == "arm" and "asimd" in words:
            words = [*words, *_IN_32_BIT]
        implementer, part = found.get("CPU implementer", ""), found.get("CPU part", "")
        processors.append(
            Processor(
                number=int(found["processor"]),
                core=CORES.get(part.lower(), "") if implementer.lower() == _ARM else "",
                part=f"{implementer} {part}".strip() or found.get("model name", ""),
                features=tuple(dict.fromkeys(words)),
            )
        )
    return tuple(processors)


def parse_meminfo(text: str) -> dict[str, int]:
    """Read /proc/meminfo as bytes; its "kB" are KiB."""
    rows = re.findall(r"(?m)^(\w+):\s+(\d+) kB$", text)
    return {name: int(value) * 1024 for name, value in rows}


def parse_machine(dump: str, kernel_machine: str) -> str:
    """Read e_machine from the first 20 bytes of a program, as od -An -tx1 prints them."""
    values = [int(word, 16) for word in re.findall(r"\b[0-9a-f]{2}\b", dump)]
    if len(values) >= 20 and bytes(values[:4]) == b"\x7fELF":
        # Bit 0 of EI_DATA says little endian; the high byte of every machine here is 0.
        return _ELF.get(values[18] or values[19], kernel_machine)
    return "arm" if kernel_machine.startswith("armv") else kernel_machine


def parse_glibc(text: str) -> str:
    """Find the version in what getconf, ldd or the library itself prints; "" for musl."""
    match = re.search(r"(?:glibc|GNU libc|GNU C Library|GLIBC)\D*?(\d+\.\d+)", text, re.IGNORECASE)
    if match:
        return match[1]
    # Debian's ldd says "ldd (Debian GLIBC 2.36-9) 2.36", other builds "ldd (GNU libc) 2.31".
    return ""


def parse_space(df: str, mounts: str) -> tuple[int, bool]:
    """Read bytes free from df -Pk, and whether its mount allows programs from /proc/mounts."""
    rows = [line.split() for line in df.splitlines()]
    rows = [row for row in rows if len(row) >= 6 and row[3].isdigit()]
    if not rows:
        return 0, True
    free, point = int(rows[-1][3]) * 1024, " ".join(rows[-1][5:])
    options = ""
    for line in mounts.splitlines():
        words = line.split()
        # The last mount on a point is the one seen; the kernel writes a space there as \040.
        if len(words) >= 4 and words[1].replace("\\040", " ") == point:
            options = words[3]
    return free, "noexec" not in options.split(",")


def parse_list(text: str) -> tuple[int, ...]:
    """Read the kernel's lists of numbers.

    >>> parse_list("0-2,7")
    (0, 1, 2, 7)
    """
    numbers: list[int] = []
    for part in re.split(r"[,\s]+", text.strip()):
        low, _, high = part.partition("-")
        if low.isdigit():
            numbers.extend(range(int(low), int(high if high.isdigit() else low) + 1))
    return tuple(numbers)


def parse_caches(text: str) -> dict[int, tuple[Cache, ...]]:
    """Read lines "cpuN level type size shared" of /sys/devices/system/cpu."""
    found: dict[int, list[Cache]] = {}
    for words in map(str.split, text.splitlines()):
        match = re.fullmatch(r"cpu(\d+) (\d) (\w+) (\d+)K (\S+)", " ".join(words))
        if match:
            cache = Cache(
                level=int(match[2]),
                type=match[3],
                size=int(match[4]) * 1024,
                shared_by=parse_list(match[5]),
            )
            found.setdefault(int(match[1]), []).append(cache)
    return {number: tuple(caches) for number, caches in found.items()}


def parse_clocks(text: str) -> tuple[dict[int, int], tuple[str, ...]]:
    """Read lines "kHz governor: processors" of cpufreq: highest clock of each, and governors."""
    clocks: dict[int, int] = {}
    governors: list[str] = []
    for line in text.splitlines():
        match = re.fullmatch(r"(\d+) (\S*): ?(.*)", line.strip())
        if match:
            clocks |= dict.fromkeys(parse_list(match[3]), int(match[1]))
            governors.append(match[2])
    return clocks, tuple(governors)


def parse_temperatures(text: str) -> dict[str, int]:
    """Read lines "type millidegrees" of /sys/class/thermal."""
    rows = re.findall(r"(?m)^(\S+) (-?\d+)$", text)
    return {name: int(value) for name, value in rows}


def parse_facts(sections: Mapping[str, str]) -> BoardFacts:
    """Join what the sections of the facts script say; a section may be empty, none may miss.

    Raises KeyError or ValueError when the board has no /proc.
    """
    kernel_machine = sections["machine"].strip()
    machine = parse_machine(sections["program"], kernel_machine)
    memory = parse_meminfo(sections["meminfo"])
    clocks, governors = parse_clocks(sections["clocks"])
    caches = parse_caches(sections["caches"])
    processors = tuple(
        each.model_copy(
            update={"max_khz": clocks.get(each.number), "caches": caches.get(each.number, ())}
        )
        for each in parse_cpuinfo(sections["cpuinfo"], machine=machine)
    )
    features = processors[0].features if processors else ()
    common = set(features).intersection(*(each.features for each in processors))
    free, executable = parse_space(sections["space"], sections["mounts"])
    return BoardFacts(
        machine=machine,
        kernel_machine=kernel_machine,
        kernel=sections["kernel"].strip(),
        model=sections["model"].replace("\0", "").strip(),
        features=tuple(name for name in features if name in common),
        processors=processors,
        glibc=parse_glibc(sections["glibc"]),
        ram_total=memory["MemTotal"],
        # Before Linux 3.14 there is no MemAvailable.
        ram_available=memory.get("MemAvailable", memory["MemFree"]),
        swap_total=memory.get("SwapTotal", 0),
        page_size=_page_size(sections["page"]),
        boot_id=sections["boot"].strip(),
        uptime=float(sections["uptime"].split()[0]),
        folder=sections["folder"].strip(),
        free=free,
        writable=sections["writable"].strip() == "yes",
        executable=executable,
        temperatures=parse_temperatures(sections["temperatures"]),
        governors=governors,
    )


def _page_size(text: str) -> int:
    """Read "4096" as getconf prints it, or "4 kB" as /proc/self/smaps does."""
    words = text.split()
    return int(words[0]) * (1024 if words[1:2] == ["kB"] else 1)
