"""Parsers on what kernels print. The Raspberry Pi texts are as its kernels lay them out."""

import pytest

from edgeopt.board.procfs import (
    parse_cpuinfo,
    parse_glibc,
    parse_list,
    parse_machine,
    parse_meminfo,
    parse_space,
)

PI4_64 = "".join(
    f"""\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
    for number in range(4)
) + (
    "Hardware\t: BCM2835\nRevision\t: c03114\nSerial\t\t: 10000000abcdef01\n"
    "Model\t\t: Raspberry Pi 4 Model B Rev 1.4\n"
)

PI4_32 = (
    "".join(
        f"""\
processor\t: {number}
model name\t: ARMv7 Processor rev 3 (v7l)
BogoMIPS\t: 108.00
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
        for number in range(4)
    )
    + "Hardware\t: BCM2711\nRevision\t: c03114\n"
)

#: Four small cores come first, as on an RK3588; only the large ones are listed with SVE here.
TWO_KINDS = "".join(
    f"processor\t: {number}\nFeatures\t: fp asimd asimddp{extra}\nCPU implementer\t: 0x41\n"
    f"CPU part\t: {part}\n\n"
    for number, part, extra in (
        (0, "0xd05", ""),
        (1, "0xd05", ""),
        (4, "0xd0b", " sve"),
        (5, "0xd0b", " sve"),
    )
)

X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: An x86 processor @ 2.00GHz
flags\t\t: fpu sse2 ssse3 avx avx2 fma
bugs\t\t: spectre_v1

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: An x86 processor @ 2.00GHz
flags\t\t: fpu sse2 ssse3 avx avx2 fma
"""

OTHER_MAKER = "processor : 0\nFeatures : fp asimd\nCPU implementer : 0x61\nCPU part : 0xd08\n"


def test_a_raspberry_pi_4_with_a_64_bit_system() -> None:
    found = parse_cpuinfo(PI4_64, machine="aarch64")
    assert [each.number for each in found] == [0, 1, 2, 3]
    assert {(each.core, each.part) for each in found} == {("cortex-a72", "0x41 0xd08")}
    assert found[0].features == ("fp", "asimd", "evtstrm", "crc32", "cpuid")


def test_a_raspberry_pi_4_with_a_32_bit_system() -> None:
    (one, *others) = parse_cpuinfo(PI4_32, machine="arm")
    assert one.core == "cortex-a72"
    assert {"neon", "vfpv4", "idiva"} <= set(one.features)
    assert "asimd" not in one.features
    assert len(others) == 3


def test_32_bit_programs_under_a_64_bit_kernel_have_neon_though_it_is_not_listed() -> None:
    for machine, expected in (("arm", True), ("aarch64", False)):
        found = parse_cpuinfo(PI4_64, machine=machine)
        assert ("neon" in found[0].features) == expected


def test_two_kinds_of_cores_are_told_apart() -> None:
    found = parse_cpuinfo(TWO_KINDS, machine="aarch64")
    assert [(each.number, each.core) for each in found] == [
        (0, "cortex-a55"),
        (1, "cortex-a55"),
        (4, "cortex-a76"),
        (5, "cortex-a76"),
    ]


def test_x86_has_flags_and_a_model_name() -> None:
    found = parse_cpuinfo(X86, machine="x86_64")
    assert len(found) == 2
    assert found[1].part == "An x86 processor @ 2.00GHz"
    assert found[1].core == ""
    assert "avx2" in found[1].features


def test_a_part_number_means_nothing_without_its_maker() -> None:
    assert parse_cpuinfo(OTHER_MAKER, machine="aarch64")[0].core == ""
    assert parse_cpuinfo("", machine="aarch64") == ()
    assert parse_cpuinfo("garbage\n\0\n: :\nprocessor : x\n", machine="aarch64") == ()


def test_meminfo_is_in_kib_whatever_it_says() -> None:
    text = "MemTotal:         945364 kB\nMemFree:  1 kB\nHugePages_Total:       0\nSwap: x kB\n"
    assert parse_meminfo(text) == {"MemTotal": 945364 * 1024, "MemFree": 1024}


ELF = "7f 45 4c 46 {cls} 01 01 00 00 00 00 00 00 00 00 00 03 00 {low} 00"


@pytest.mark.parametrize(
    ("dump", "kernel", "machine"),
    [
        (ELF.format(cls="02", low="b7"), "aarch64", "aarch64"),
        (ELF.format(cls="01", low="28"), "aarch64", "arm"),
        (ELF.format(cls="01", low="28"), "armv7l", "arm"),
        (ELF.format(cls="02", low="3e"), "x86_64", "x86_64"),
        # busybox's od breaks its lines after 16 bytes.
        (ELF.format(cls="02", low="b7").replace("03 00", "\n 03 00"), "x", "aarch64"),
        ("", "armv6l", "arm"),
        ("", "aarch64", "aarch64"),
        ("od: not found", "mips", "mips"),
    ],
)
def test_the_machine_is_that_of_the_programs(dump: str, kernel: str, machine: str) -> None:
    assert parse_machine(dump, kernel) == machine


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("glibc 2.36\n", "2.36"),
        ("ldd (Debian GLIBC 2.36-9+deb12u4) 2.36\nCopyright (C) 2022\n", "2.36"),
        ("ldd (Ubuntu GLIBC 2.35-0ubuntu3.4) 2.35\n", "2.35"),
        ("ldd (GNU libc) 2.31\n", "2.31"),
        ("GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\n", "2.36"),
        ("GNU C Library (Buildroot) stable release version 2.38.\n", "2.38"),
        ("musl libc (aarch64)\nVersion 1.2.4\n", ""),
        ("", ""),
    ],
)
def test_the_c_library_is_found_however_it_is_asked(text: str, version: str) -> None:
    assert parse_glibc(text) == version


MOUNTS = """\
/dev/root / ext4 rw,noatime 0 0
tmpfs /tmp tmpfs rw,nosuid,noexec 0 0
/dev/sda1 /media/my\\040card vfat rw,noexec,uid=1000 0 0
tmpfs /opt tmpfs rw,noexec 0 0
/dev/sdb1 /opt ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("/dev/root 30000 10000 20000 34% /", (20000 * 1024, True)),
        ("tmpfs 100 0 100 0% /tmp", (100 * 1024, False)),
        ("/dev/sda1 100 0 100 0% /media/my card", (100 * 1024, False)),
        ("/dev/sdb1 7 0 7 0% /opt", (7 * 1024, True)),
        ("df: no such", (0, True)),
    ],
)
def test_space_and_the_right_to_run_programs(row: str, expected: tuple[int, bool]) -> None:
    header = "Filesystem 1024-blocks Used Available Capacity Mounted on\n"
    assert parse_space(header + row, MOUNTS) == expected


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("0 1 4", (0, 1, 4)), ("", ())]
)
def test_lists_of_processors(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_list(text) == numbers
