"""Lengths and features as binutils 2.40 prints them, and a program with and without such code."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.runner.instructions import used_features
from edgeopt.runner.x86 import count_features, decode

ENCODED = {
    "55": ("push %rbp", ""),
    "4889e5": ("mov %rsp,%rbp", ""),
    "48b8efcdab8967452301": ("movabs $0x123456789abcdef,%rax", ""),
    "66b83412": ("mov $0x1234,%ax", ""),
    "48c7042400000000": ("movq $0x0,(%rsp)", ""),
    "64488b042528000000": ("mov %fs:0x28,%rax", ""),
    "488d0500000000": ("lea 0x0(%rip),%rax", ""),
    "f7c601000000": ("test $0x1,%esi", ""),
    "f7d8": ("neg %eax", ""),
    "660f1f840000000000": ("nopw 0x0(%rax,%rax,1)", ""),
    "0f8434120000": ("je", ""),
    "e800000000": ("call", ""),
    "c8100000": ("enter $0x10,$0x0", ""),
    "f30f6f07": ("movdqu (%rdi),%xmm0", ""),
    "660f3a0fc104": ("palignr $0x4,%xmm1,%xmm0", ""),
    "660f70c04e": ("pshufd $0x4e,%xmm0,%xmm0", ""),
    "f3480fbdc7": ("lzcnt %rdi,%rax", "abm"),
    "f3480fbcc7": ("tzcnt %rdi,%rax", ""),
    "0f38f007": ("movbe (%rdi),%eax", "movbe"),
    "f20f38f1c7": ("crc32l %edi,%eax", ""),
    "c5f458c2": ("vaddps %ymm2,%ymm1,%ymm0", "avx"),
    "c5f877": ("vzeroupper", "avx"),
    "c5f1fec2": ("vpaddd %xmm2,%xmm1,%xmm0", "avx"),
    "c5f5fec2": ("vpaddd %ymm2,%ymm1,%ymm0", "avx2"),
    "c4e27918c0": ("vbroadcastss %xmm0,%xmm0", "avx"),
    "c4e27d58c0": ("vpbroadcastd %xmm0,%ymm0", "avx2"),
    "c4e3fd00c0d8": ("vpermq $0xd8,%ymm0,%ymm0", "avx2"),
    "c4e275b8c2": ("vfmadd231ps %ymm2,%ymm1,%ymm0", "fma"),
    "c4e27d13c0": ("vcvtph2ps %xmm0,%ymm0", "f16c"),
    "c4e37d1dc000": ("vcvtps2ph $0x0,%ymm0,%xmm0", "f16c"),
    "c4e27550c2": ("{vex} vpdpbusd %ymm2,%ymm1,%ymm0", "avx_vnni"),
    "c4e2784900": ("ldtilecfg (%rax)", "amx_tile"),
    "c4e27849c0": ("tilerelease", "amx_tile"),
    "c4e27b49c8": ("tilezero %tmm1", "amx_tile"),
    "c4827b4bac1800040000": ("tileloadd 0x400(%r8,%r11,1),%tmm5", "amx_tile"),
    "c4e27a4b9c0240080000": ("tilestored %tmm3,0x840(%rdx,%rax,1)", "amx_tile"),
    "c4e24b5ec4": ("tdpbssd %tmm6,%tmm4,%tmm0", "amx_int8"),
    "c4e2415edd": ("tdpbusd %tmm7,%tmm5,%tmm3", "amx_int8"),
    "c4e2f0f2c2": ("andn %rdx,%rcx,%rax", "bmi1"),
    "c4e2f1f7c2": ("shlx %rcx,%rdx,%rax", "bmi2"),
    "c4e37bf0c005": ("rorx $0x5,%eax,%eax", "bmi2"),
    "62f1744858c2": ("vaddps %zmm2,%zmm1,%zmm0", "avx512f"),
    "62f2754850c2": ("vpdpbusd %zmm2,%zmm1,%zmm0", "avx512_vnni"),
    "62f17c48107f01": ("vmovups 0x40(%rdi),%zmm7", "avx512f"),
}


@pytest.mark.parametrize("text", ENCODED)
def test_an_instruction_has_its_length_and_its_feature(text: str) -> None:
    code = bytes.fromhex(text)
    words, feature = ENCODED[text]
    found = decode(code + b"\x90" * 15, 0)
    assert (found.length, found.feature) == (len(code), feature), words


def test_a_sweep_counts_what_is_there_and_passes_over_what_is_none() -> None:
    code = bytes.fromhex("c5f458c20662f1744858c2c4e275b8c2c5f4")
    assert count_features(code) == {"avx": 1, "avx512f": 1, "fma": 1}
    assert count_features(b"") == {}


@pytest.mark.parametrize(
    ("cpu", "some", "none"),
    [
        ("x86_64", set(), {"avx", "avx2", "fma", "avx512f", "avx512_vnni"}),
        ("x86_64_v3", {"avx", "fma"}, {"avx512f", "avx512_vnni"}),
        ("cascadelake", {"avx512f"}, set()),
    ],
)
def test_a_program_has_the_features_that_it_was_compiled_for(
    tmp_path: Path, cpu: str, some: set[str], none: set[str]
) -> None:
    pytest.importorskip("ziglang")
    (tmp_path / "a.c").write_text(
        "void axpy(float* y, const float* x, float a) {\n"
        "  for (int i = 0; i < 4096; ++i) y[i] += a * x[i];\n}\n"
    )
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu"]
    options = [f"-mcpu={cpu}", "-O3", "-ffast-math", "-mprefer-vector-width=512", "-shared"]
    built = tmp_path / "a.so"
    subprocess.run([*zig, *options, tmp_path / "a.c", "-o", built], check=True)
    used = used_features(built)
    assert some <= set(used)
    assert not none & set(used)
