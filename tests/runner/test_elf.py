"""Reading ELF files: this machine's own Python is one at hand."""

import platform
import sys
from pathlib import Path

import pytest

from edgeopt.errors import ConfigError
from edgeopt.runner.elf import elf_machine, needed_glibc, undefined_symbols

PYTHON = Path(sys.executable).resolve()


def test_a_program_tells_its_machine() -> None:
    assert elf_machine(PYTHON) == platform.machine()


def test_a_program_needs_no_newer_glibc_than_the_one_it_runs_with() -> None:
    def order(release: str) -> list[int]:
        return [int(part) for part in release.split(".")]

    needed = needed_glibc(PYTHON)
    assert order("2.0") <= order(needed) <= order(platform.libc_ver()[1])


def test_functions_of_the_c_library_are_undefined_with_their_version() -> None:
    assert undefined_symbols(PYTHON)["__libc_start_main"].startswith("GLIBC_2")


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\2\1\1", bytes(64)])
def test_what_is_no_program_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "program"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="not a program for Linux"):
        elf_machine(path)


def test_a_program_cut_short_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(PYTHON.read_bytes()[:4096])
    with pytest.raises(ConfigError, match="not a program for Linux"):
        needed_glibc(path)
