"""Which optional instructions a program holds, found without a disassembler.

A64 instructions are 32 bits wide and aligned, so that masks are enough. Encodings: Arm
Architecture Reference Manual (DDI 0487), C4.1; features are named as /proc/cpuinfo does.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeopt.runner.elf import elf_machine, executable_code
from edgeopt.runner.x86 import count_features

#: feature: (mask, value) of each class of instructions that needs it.
_CLASSES: dict[str, tuple[tuple[int, int], ...]] = {
    # CAS, CASP, LDADD and its like, SWP; LDAPR is among them and another feature.
    "atomics": ((0x3FA07C00, 0x08A07C00), (0xBFA07C00, 0x08207C00), (0x3B200C00, 0x38200000)),
    "asimddp": ((0x9FE0FC00, 0x0E809400), (0x9FC0F400, 0x0F80E000)),
    "i8mm": ((0xBFE0FC00, 0x0E809C00), (0xDFE0FC00, 0x4E80A400), (0xFFE0FC00, 0x4E80AC00)),
    "bf16": ((0xBFE0FC00, 0x2E40FC00), (0xFFE0FC00, 0x6E40EC00)),
    "asimdhp": ((0x9F60C400, 0x0E400400),),
    "fphp": ((0xFFE00C00, 0x1EE00800),),
    "aes": ((0xFFFF0C00, 0x4E280800),),
    "sha2": ((0xFFE08C00, 0x5E000000), (0xFFFF0C00, 0x5E280800)),
    "crc32": ((0x7FE0E000, 0x1AC04000),),
    "sve": ((0x1E000000, 0x04000000),),
}
_LOAD_ACQUIRE = (0x3FFFFC00, 0x38BFC000)
#: Functions that ask the processor first, as compilers' runtimes name them.
GUARDED = ("__aarch64_",)
#: Machines, as elf_machine names them, whose instructions are looked at.
SCANNED = ("aarch64", "x86_64")


def used_features(path: Path) -> dict[str, int]:
    """Count the instructions of each optional feature in a program or library.

    Those in functions that ask the processor first (outline atomics) do not count; where symbols
    were stripped they do. Raises ConfigError for what is no ELF file; {} for a machine that is not
    in SCANNED.
    """
    machine = elf_machine(path)
    if machine not in SCANNED:
        return {}
    found: Counter[str] = Counter()
    for code in executable_code(path, without=GUARDED):
        if machine == "x86_64":
            found.update(count_features(code))
        else:
            words = np.frombuffer(code[: len(code) // 4 * 4], dtype="<u4")
            found.update(dict(_count(words)))
    return dict(found)


def _count(words: "np.ndarray[tuple[int], np.dtype[np.uint32]]") -> Iterator[tuple[str, int]]:
    for feature, classes in _CLASSES.items():
        hits = np.zeros(len(words), dtype=bool)
        for mask, value in classes:
            hits |= (words & np.uint32(mask)) == np.uint32(value)
        if feature == "atomics":
            mask, value = _LOAD_ACQUIRE
            hits &= (words & np.uint32(mask)) != np.uint32(value)
        if count := int(hits.sum()):
            yield feature, count
