"""Which optional instructions a program for x86-64 holds, found by the lengths of all of them.

Lengths and opcodes: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2,
chapter 2 and appendix A. Features are named as /proc/cpuinfo does; those that every target has (SSE
up to 4.2) are not looked for.
"""

from dataclasses import dataclass


def _of(*parts: int | range) -> frozenset[int]:
    return frozenset(each for part in parts for each in ([part] if isinstance(part, int) else part))


_PREFIXES = frozenset(b"\x66\xf2\xf3\xf0\x2e\x36\x3e\x26\x64\x65\x67")
#: Of the one-byte map: opcodes with an operand byte (ModRM).
_OPERANDS = _of(
    *(range(each, each + 4) for each in range(0, 0x40, 8)),
    *(0x63, 0x69, 0x6B, range(0x80, 0x90), 0xC0, 0xC1, 0xC6, 0xC7),
    *(range(0xD0, 0xD4), range(0xD8, 0xE0), 0xF6, 0xF7, 0xFE, 0xFF),
)
#: Bytes of the immediate that follows; 0 stands for four, or two with the prefix 66.
_IMMEDIATE = {
    **dict.fromkeys(_of(range(4, 0x40, 8), 0x6A, 0x6B, range(0x70, 0x81), 0x82, 0x83, 0xA8), 1),
    **dict.fromkeys(_of(range(0xB0, 0xB8), 0xC0, 0xC1, 0xC6, 0xCD, range(0xE0, 0xE8), 0xEB), 1),
    **dict.fromkeys(_of(range(5, 0x40, 8), 0x68, 0x69, 0x81, 0xA9, 0xC7), 0),
    0xC2: 2,
    0xCA: 2,
    0xC8: 3,
    0xE8: 4,
    0xE9: 4,
}
_INVALID = _of(0x06, 0x07, 0x0E, 0x16, 0x17, 0x1E, 0x1F, 0x27, 0x2F, 0x37, 0x3F)
#: Of the map 0F: opcodes without an operand byte, and with an immediate byte.
_BARE = _of(
    *(0x05, 0x06, 0x08, 0x09, 0x0B, range(0x30, 0x38), 0x77, range(0x80, 0x90)),
    *(0xA0, 0xA1, 0xA2, 0xA8, 0xA9, 0xAA, range(0xC8, 0xD0)),
)
_BYTE_0F = _of(range(0x70, 0x74), 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6)

#: Integer operations that AVX has for 128 bits and AVX2 for 256, by map.
_WIDE = {
    1: _of(
        *(range(0x60, 0x6E), range(0x70, 0x77), range(0xD1, 0xD6), range(0xD7, 0xE6)),
        *(range(0xE8, 0xF0), range(0xF1, 0xF7), range(0xF8, 0xFF)),
    ),
    2: _of(
        *(range(0x0C), range(0x1C, 0x1F), range(0x20, 0x26), range(0x28, 0x2C)),
        *(range(0x30, 0x36), range(0x37, 0x42)),
    ),
    3: _of(0x0E, 0x0F, 0x42, 0x4C),
}
#: Of AVX2 whatever their width.
_AVX2 = {
    1: _of(),
    2: _of(
        *(0x16, 0x36, range(0x45, 0x48), 0x58, 0x59, 0x5A, 0x78, 0x79, 0x8C, 0x8E),
        range(0x90, 0x94),
    ),
    3: _of(0x00, 0x01, 0x02, 0x38, 0x39, 0x46),
}
_VNNI = _of(range(0x50, 0x54))
#: Of the map 0F38, whatever else they say; of tile registers (AMX) their configuration, loads and
#: stores, and products of codes.
_NAMED = {
    **dict.fromkeys(_of(range(0x96, 0xA0), range(0xA6, 0xB0), range(0xB6, 0xC0)), "fma"),
    **dict.fromkeys(_VNNI, "avx_vnni"),
    **dict.fromkeys(_of(0x49, 0x4B), "amx_tile"),
    0x5E: "amx_int8",
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its bytes, and the feature that it needs; "" for one that all have."""

    length: int
    feature: str = ""


def count_features(code: bytes) -> dict[str, int]:
    """Count the instructions of each optional feature in a section, from its first byte on.

    A byte that begins none is passed over: data between functions is found again by its end.
    """
    found: dict[str, int] = {}
    place = 0
    while place < len(code):
        decoded = decode(code, place)
        if decoded.feature:
            found[decoded.feature] = found.get(decoded.feature, 0) + 1
        place += decoded.length
    return found


def decode(code: bytes, place: int) -> Instruction:
    """Decode the instruction at a place; one byte without a feature for what is none.

    >>> decode(bytes.fromhex("c5f458c2"), 0)
    Instruction(length=4, feature='avx')
    """
    try:
        return _decode(code, place)
    except IndexError:
        return Instruction(1)


def _decode(code: bytes, start: int) -> Instruction:
    place, prefixes, wide = start, set(), False
    while code[place] in _PREFIXES:
        prefixes.add(code[place])
        place += 1
    if code[place] in (0xC4, 0xC5, 0x62):
        return _decode_vector(code, start, place)
    if code[place] & 0xF0 == 0x40:
        wide = bool(code[place] & 8)
        place += 1
    opcode = code[place]
    place += 1
    if opcode == 0x0F:
        return _decode_two(code, start, place, prefixes)
    if opcode in _INVALID:
        return Instruction(1)
    first = code[place] if opcode in _OPERANDS else 0
    if opcode in _OPERANDS:
        place += _operand_length(code, place)
    return Instruction(place + _immediate(opcode, first, prefixes, wide=wide) - start)


def _immediate(opcode: int, operand: int, prefixes: set[int], *, wide: bool) -> int:
    """Return the bytes of the immediate of an instruction of the one-byte map."""
    word = 2 if 0x66 in prefixes and not wide else 4
    if 0xB8 <= opcode <= 0xBF:
        return 8 if wide else word
    if 0xA0 <= opcode <= 0xA3:
        return 4 if 0x67 in prefixes else 8
    if opcode in (0xF6, 0xF7):
        # TEST has an immediate, the others of its group none.
        return 0 if operand >> 3 & 7 > 1 else (1 if opcode == 0xF6 else word)
    return _IMMEDIATE[opcode] or word if opcode in _IMMEDIATE else 0


def _operand_length(code: bytes, place: int) -> int:
    """Return the bytes of ModRM, SIB and displacement."""
    mode, base = code[place] >> 6, code[place] & 7
    if mode == 3:
        return 1
    length = 1
    if base == 4:
        base = code[place + 1] & 7
        length += 1
    if mode == 1:
        return length + 1
    return length + (4 if mode == 2 or base == 5 else 0)


def _decode_two(code: bytes, start: int, place: int, prefixes: set[int]) -> Instruction:
    """Decode what follows the byte 0F, the maps 0F38 and 0F3A included."""
    opcode = code[place]
    place += 1
    if opcode in (0x38, 0x3A):
        second = code[place]
        place += 1 + _operand_length(code, place + 1) + (opcode == 0x3A)
        moves = opcode == 0x38 and second in (0xF0, 0xF1) and 0xF2 not in prefixes
        return Instruction(place - start, "movbe" if moves else "")
    if opcode not in _BARE:
        place += _operand_length(code, place)
    place += opcode in _BYTE_0F
    place += 4 if 0x80 <= opcode <= 0x8F else 0
    counts = opcode == 0xBD and 0xF3 in prefixes
    return Instruction(place - start, "abm" if counts else "")


def _decode_vector(code: bytes, start: int, place: int) -> Instruction:
    """Decode VEX of two or three bytes, and EVEX of four."""
    kind = code[place]
    if kind == 0xC5:
        table, last, place = 1, code[place + 1], place + 2
    elif kind == 0xC4:
        table, last, place = code[place + 1] & 31, code[place + 2], place + 3
    else:
        table, last, place = code[place + 1] & 7, code[place + 2], place + 4
    opcode = code[place]
    place += 1
    if not (table == 1 and opcode == 0x77):
        place += _operand_length(code, place)
    place += table == 3 or (table == 1 and opcode in _BYTE_0F)
    if kind == 0x62:
        dots = table == 2 and opcode in _VNNI
        return Instruction(place - start, "avx512_vnni" if dots else "avx512f")
    if table not in _WIDE:
        return Instruction(1)
    return Instruction(place - start, _vex_feature(table, opcode, last))


def _vex_feature(table: int, opcode: int, last: int) -> str:
    """Name the feature of a VEX instruction by its map, opcode and last byte (W vvvv L pp)."""
    if table == 2 and opcode in _NAMED:
        return _NAMED[opcode]
    if (table, opcode) in ((2, 0x13), (3, 0x1D)):
        return "f16c"
    if (table, opcode) == (3, 0xF0) or (table == 2 and opcode in (0xF5, 0xF6)):
        return "bmi2"
    if table == 2 and opcode in (0xF2, 0xF3, 0xF7):
        return "bmi2" if opcode == 0xF7 and last & 3 else "bmi1"
    if opcode in _AVX2[table] or (last & 4 and opcode in _WIDE[table]):
        return "avx2"
    return "avx"
