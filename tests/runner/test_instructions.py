"""Encodings as llvm-mc 19 writes them, and a program with and without such instructions."""

import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.runner.instructions import _count, used_features

np = pytest.importorskip("numpy")

ENCODED = {
    "sdot v0.4s, v1.16b, v2.16b": (0x4E829420, "asimddp"),
    "udot v3.2s, v4.8b, v5.8b": (0x2E859483, "asimddp"),
    "sdot v0.4s, v1.16b, v2.4b[3]": (0x4FA2E820, "asimddp"),
    "usdot v0.4s, v1.16b, v2.16b": (0x4E829C20, "i8mm"),
    "smmla v0.4s, v1.16b, v2.16b": (0x4E82A420, "i8mm"),
    "fadd v0.8h, v1.8h, v2.8h": (0x4E421420, "asimdhp"),
    "fmla v0.4h, v1.4h, v2.4h": (0x0E420C20, "asimdhp"),
    "fadd h0, h1, h2": (0x1EE22820, "fphp"),
    "ldadd w0, w1, [x2]": (0xB8200041, "atomics"),
    "swpal x0, x1, [x2]": (0xF8E08041, "atomics"),
    "cas w0, w1, [x2]": (0x88A07C41, "atomics"),
    "casp x0, x1, x2, x3, [x4]": (0x48207C82, "atomics"),
    "aese v0.16b, v1.16b": (0x4E284820, "aes"),
    "sha256h q0, q1, v2.4s": (0x5E024020, "sha2"),
    "crc32w w0, w1, w2": (0x1AC24820, "crc32"),
    "bfdot v0.4s, v1.8h, v2.8h": (0x6E42FC20, "bf16"),
    "bfmmla v0.4s, v1.8h, v2.8h": (0x6E42EC20, "bf16"),
    "add z0.s, z1.s, z2.s": (0x04A20020, "sve"),
    "ld1w { z0.s }, p0/z, [x0]": (0xA540A000, "sve"),
    "ldapr w0, [x1]": (0xB8BFC020, ""),
    "fcvt s0, h1": (0x1EE24020, ""),
    "fcvtl v0.4s, v1.4h": (0x0E217820, ""),
    "fmla v0.4s, v1.4s, v2.4s": (0x4E22CC20, ""),
    "fmla v0.4s, v1.4s, v2.s[1]": (0x4FA21020, ""),
    "smlal v0.4s, v1.4h, v2.4h": (0x0E628020, ""),
    "mul v0.8h, v1.8h, v2.8h": (0x4E629C20, ""),
    "ldr q0, [x0, #16]": (0x3DC00400, ""),
    "ldxr w0, [x1]": (0x885F7C20, ""),
    "stlxr w0, w1, [x2]": (0x8800FC41, ""),
    "ldp x29, x30, [sp], #16": (0xA8C17BFD, ""),
    "ldr w0, [x1, x2]": (0xB8626820, ""),
    "madd x0, x1, x2, x3": (0x9B020C20, ""),
    "add x0, x1, x2": (0x8B020020, ""),
    "tbl v0.16b, {v1.16b}, v2.16b": (0x4E020020, ""),
}


@pytest.mark.parametrize("text", ENCODED)
def test_an_instruction_is_of_its_feature_and_of_no_other(text: str) -> None:
    word, feature = ENCODED[text]
    found = dict(_count(np.frombuffer(struct.pack("<I", word), dtype="<u4")))
    assert found == ({feature: 1} if feature else {})


def build(folder: Path, body: str, *options: str) -> Path:
    source, output = folder / "part.c", folder / "part.so"
    source.write_text(body)
    argv = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.31", "-O2"]
    subprocess.run([*argv, *options, "-shared", str(source), "-o", str(output)], check=True)
    return output


def test_a_library_says_which_instructions_it_holds(tmp_path: Path) -> None:
    plain = build(tmp_path, "float twice(float x) { return x + x; }")
    assert "asimddp" not in used_features(plain)
    body = 'void dot(void) { __asm__("sdot v0.4s, v1.16b, v2.16b"); }'
    assert used_features(build(tmp_path, body, "-mcpu=cortex_a76"))["asimddp"] == 1


def test_functions_that_ask_the_processor_first_do_not_count(tmp_path: Path) -> None:
    body = '__attribute__((noinline)) void {}(void) {{ __asm__("ldadd w0, w1, [x2]"); }}'
    named = build(tmp_path, body.format("__aarch64_ldadd4_own"), "-mcpu=cortex_a76")
    assert used_features(named) == {}
    other = build(tmp_path, body.format("counts"), "-mcpu=cortex_a76")
    assert used_features(other) == {"atomics": 1}


@pytest.mark.skipif(platform.machine() == "aarch64", reason="needs another machine")
def test_code_of_another_machine_is_not_read() -> None:
    assert used_features(Path("/bin/true")) == {}
