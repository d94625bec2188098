"""The program that runs on the device: its C sources, how to build it, and what it produces."""

from edgeopt.runner.elf import elf_machine, needed_glibc
from edgeopt.runner.memory import runtime_bytes
from edgeopt.runner.program import build_program, link_model
from edgeopt.runner.toolchain import Linkage, Machine

__all__ = [
    "Linkage",
    "Machine",
    "build_program",
    "elf_machine",
    "link_model",
    "needed_glibc",
    "runtime_bytes",
]
