"""What an ELF file says of the machine and the C library that it needs."""

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgeopt.errors import ConfigError

#: e_machine of the ELF header (System V ABI and its processor supplements).
_MACHINES = {40: "arm", 62: "x86_64", 183: "aarch64"}
_PROGBITS, _SYMTAB, _DYNSYM = 1, 2, 11
#: SHF_EXECINSTR.
_EXECUTABLE = 4
_GNU_VERNEED = 0x6FFFFFFE
_GNU_VERSYM = 0x6FFFFFFF


@dataclass(frozen=True, slots=True)
class _Section:
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int


@dataclass(frozen=True, slots=True)
class _Elf:
    data: bytes
    machine: str
    wide: bool
    sections: tuple[_Section, ...]

    def text(self, strings: int, offset: int) -> str:
        start = self.sections[strings].offset + offset
        return self.data[start : self.data.index(b"\0", start)].decode("ascii")

    def find(self, kind: int) -> _Section | None:
        return next((each for each in self.sections if each.kind == kind), None)


def _read_sections(data: bytes, wide: bool) -> Iterator[_Section]:
    place = 40 if wide else 32
    (table,) = struct.unpack_from("<Q" if wide else "<I", data, place)
    size, count = struct.unpack_from("<HH", data, 58 if wide else 46)
    for index in range(count):
        fields = struct.unpack_from(
            "<IIQQQQII" if wide else "<IIIIIIII", data, table + index * size
        )
        _, kind, flags, address, offset, length, link, info = fields
        yield _Section(kind, flags, address, offset, length, link, info)


def _parse_elf(data: bytes) -> _Elf:
    if data[:4] != b"\x7fELF" or data[5] != 1:
        raise ValueError("no little-endian ELF header")
    wide = data[4] == 2
    (code,) = struct.unpack_from("<H", data, 18)
    sections = tuple(_read_sections(data, wide))
    return _Elf(data, _MACHINES.get(code, f"machine {code}"), wide, sections)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[_Elf]:
    """Parse a file; what leads out of it, then or later, is a ConfigError."""
    try:
        yield _parse_elf(path.read_bytes())
    except (ValueError, IndexError, struct.error) as error:
        raise ConfigError(f"{path} is not a program for Linux", why=str(error)) from error


def executable_code(path: Path, *, without: tuple[str, ...] = ()) -> tuple[bytes, ...]:
    """Return the bytes of every section of instructions, the named functions zeroed.

    without: how the names of functions begin that do not count; where symbols are left.
    """
    with _reading(path) as elf:
        parts = []
        functions = [each for each in _functions(elf) if each[0].startswith(without or (" ",))]
        for section in elf.sections:
            if section.kind != _PROGBITS or not section.flags & _EXECUTABLE:
                continue
            if section.offset + section.size > len(elf.data):
                raise ValueError("a section ends beyond the file")
            code = bytearray(elf.data[section.offset : section.offset + section.size])
            for _, address, size in functions:
                begin = address - section.address
                if 0 <= begin < len(code):
                    code[begin : begin + size] = bytes(min(size, len(code) - begin))
            parts.append(bytes(code))
    return tuple(parts)


def _functions(elf: _Elf) -> Iterator[tuple[str, int, int]]:
    """Yield name, address and size of each symbol of a 64-bit file that was not stripped."""
    table = elf.find(_SYMTAB)
    if table is None or not elf.wide:
        return
    for place in range(table.offset, table.offset + table.size - 23, 24):
        name, _, _, _, address, size = struct.unpack_from("<IBBHQQ", elf.data, place)
        yield elf.text(table.link, name), address, size


def elf_machine(path: Path) -> str:
    """Name the instruction set of a program or library: "aarch64", "arm" or "x86_64"."""
    with _reading(path) as elf:
        return elf.machine


def _needed_versions(elf: _Elf) -> dict[int, str]:
    """Map the index of each needed symbol version to its name, as "GLIBC_2.17"."""
    section = elf.find(_GNU_VERNEED)
    versions: dict[int, str] = {}
    if section is None:
        return versions
    library = section.offset
    for _ in range(section.info):
        _, count, _, first, following = struct.unpack_from("<HHIII", elf.data, library)
        entry = library + first
        for _ in range(count):
            _, _, index, name, step = struct.unpack_from("<IHHII", elf.data, entry)
            versions[index] = elf.text(section.link, name)
            entry += step
        library += following
    return versions


def _order(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def needed_glibc(path: Path) -> str:
    """Read the lowest glibc that a file runs with, as "2.17"; "" when it needs none."""
    with _reading(path) as elf:
        names = _needed_versions(elf).values()
        releases = [name.removeprefix("GLIBC_") for name in names if name.startswith("GLIBC_2")]
        return max(releases, key=_order, default="")


def undefined_symbols(path: Path) -> dict[str, str]:
    """Map what a file expects of others to its version, as {"expf": "GLIBC_2.17"}.

    Symbols without a version map to "". Weak ones are left out: nothing breaks without them.
    """
    with _reading(path) as elf:
        return _undefined(elf)


def defined_symbols(path: Path) -> frozenset[str]:
    """Name what a program or library gives to what it opens, or what opens it."""
    with _reading(path) as elf:
        return frozenset(
            elf.text(link, name) for name, _, section, link in _symbols(elf) if section != 0
        )


def is_listed(path: Path) -> bool:
    """Whether a file has a section of instructions that can be found; a stripped table has none."""
    with _reading(path) as elf:
        return any(
            each.kind == _PROGBITS and each.flags & _EXECUTABLE and each.size
            for each in elf.sections
        )


def _symbols(elf: _Elf) -> Iterator[tuple[int, int, int, int]]:
    """Yield name, info and section of each dynamic symbol, and where its name lies."""
    table = elf.find(_DYNSYM)
    if table is None:
        return
    size = 24 if elf.wide else 16
    for index in range(1, table.size // size):
        yield (*_read_symbol(elf, table.offset + index * size), table.link)


def _undefined(elf: _Elf) -> dict[str, str]:
    marks = elf.find(_GNU_VERSYM)
    versions = _needed_versions(elf)
    found: dict[str, str] = {}
    for index, (name, info, section, link) in enumerate(_symbols(elf), start=1):
        if section != 0 or info >> 4 == 2:
            continue
        mark = 0
        if marks is not None:
            (mark,) = struct.unpack_from("<H", elf.data, marks.offset + 2 * index)
        found[elf.text(link, name)] = versions.get(mark & 0x7FFF, "")
    return found


def _read_symbol(elf: _Elf, place: int) -> tuple[int, int, int]:
    """Read name, info and section index; the two classes order their fields differently."""
    if elf.wide:
        name, info, _, section = struct.unpack_from("<IBBH", elf.data, place)
    else:
        name, _, _, info, _, section = struct.unpack_from("<IIIBBH", elf.data, place)
    return name, info, section
