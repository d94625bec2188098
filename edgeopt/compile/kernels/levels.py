"""Levels that codes of 4 bits stand for, found in registers for a word of them in every lane.

Sixteen levels fill one register of AVX-512, which VPERMPS permutes by codes; two of AVX2, which
permutes both and takes one by the code's highest bit; or four of 64-bit ARM, whose 64 bytes TBL
looks up.
"""

from collections.abc import Callable
from functools import cache

from tvm import te, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels.functions import choose_level
from edgeopt.compile.kernels.scheduling import Block, Loop, Schedule, mark, marked
from edgeopt.compile.kernels.tile_intrinsics import register_levels

ROLE = "levels"
#: Bits of a code, codes of a word, and what they can stand for.
BITS = 4
PER_WORD = 8
COUNT = 16

_NAME = "edgeopt_levels"


def has_look_up(cpu: Cpu) -> bool:
    """Tell whether a core finds levels by such an instruction."""
    return cpu.machine == "aarch64" or cpu.permutes


def define_found(
    words: te.Tensor, levels: te.Tensor, group_of: Callable[[tirx.Expr, tirx.Expr], tirx.Expr]
) -> te.Tensor:
    """Find levels [panel, word, place, column] of words [panel, word, column].

    levels: float32 [groups, 16]; group_of: finds the group of a panel and column, which is that of
    its panel.
    """

    def level(panel: tirx.Expr, word: tirx.Expr, place: tirx.Expr, column: tirx.Expr) -> tirx.Expr:
        group, bits = group_of(panel, column), words(panel, word, column)
        return choose_level(bits, place, BITS, lambda level: levels(group, level))

    panel, word, column = words.shape
    return te.compute((panel, word, PER_WORD, column), level, name="found", attrs=mark(role=ROLE))


def found_by(sch: Schedule, block: Block) -> Block | None:
    """Find the stage of levels that a block reads, if any."""
    stages = (each for each in sch.get_producers(block) if marked(sch, each, "role") == ROLE)
    return next(stages, None)


def place_found(sch: Schedule, cpu: Cpu, found: Block, *, at: Loop, outside: Loop) -> None:
    """Find the levels of one word in every lane, inside one loop; outside: one around it."""
    sch.compute_at(found, at, preserve_unit_loops=True)
    sch.tensorize(sch.get_loops(found)[-2], register_levels(_NAME, PER_WORD, cpu.lanes))
    sch.annotate(outside, "pragma_import_llvm", write_levels(cpu.machine, cpu.lanes))


@cache
def write_levels(machine: str, lanes: int) -> str:
    """Write the LLVM module of int edgeopt_levels(words, levels, found).

    words: int32 [lanes]; levels: float32 [16]; found: float32 [8, lanes], which is written.
    """
    floats, codes = f"<{lanes} x float>", f"<{lanes} x i32>"
    if machine == "aarch64":
        declared, lines = _look_up_bytes()
    elif lanes == COUNT:
        declared, lines = _permute(floats, codes)
    else:
        declared, lines = _permute_halves(floats, codes)
    return "\n".join(
        [
            declared,
            f"define linkonce_odr hidden i32 @{_NAME}(ptr %words, ptr %levels, ptr %found)"
            " alwaysinline nounwind {",
            f"  %word = load {codes}, ptr %words, align 4",
            *(f"  {line}" for line in lines),
            *(
                f"  %at{place} = getelementptr {floats}, ptr %found, i32 {place}\n"
                f"  store {floats} %level{place}, ptr %at{place}, align 4"
                for place in range(PER_WORD)
            ),
            "  ret i32 0",
            "}",
            "",
        ]
    )


def _permute(floats: str, codes: str) -> tuple[str, list[str]]:
    """Permute one register: VPERMPS reads the lowest four bits of a code."""
    name = "@llvm.x86.avx512.permvar.sf.512"
    lines = [f"%table = load {floats}, ptr %levels, align 4"]
    for place in range(PER_WORD):
        lines += [
            f"%code{place} = lshr {codes} %word, splat (i32 {place * BITS})",
            f"%level{place} = call {floats} {name}({floats} %table, {codes} %code{place})",
        ]
    return f"declare {floats} {name}({floats}, {codes})", lines


def _permute_halves(floats: str, codes: str) -> tuple[str, list[str]]:
    """Permute two registers by the lowest three bits of a code; its fourth, as a sign, chooses."""
    name = "@llvm.x86.avx2.permps"
    lines = [
        f"%lower = load {floats}, ptr %levels, align 4",
        f"%half = getelementptr {floats}, ptr %levels, i32 1",
        f"%upper = load {floats}, ptr %half, align 4",
    ]
    for place in range(PER_WORD):
        top = (PER_WORD - 1 - place) * BITS
        lines += [
            f"%code{place} = lshr {codes} %word, splat (i32 {place * BITS})",
            f"%low{place} = call {floats} {name}({floats} %lower, {codes} %code{place})",
            f"%high{place} = call {floats} {name}({floats} %upper, {codes} %code{place})",
            f"%top{place} = shl {codes} %word, splat (i32 {top})",
            f"%is{place} = icmp slt {codes} %top{place}, zeroinitializer",
            f"%level{place} = select <8 x i1> %is{place}, {floats} %high{place},"
            f" {floats} %low{place}",
        ]
    return f"declare {floats} {name}({floats}, {codes})", lines


def _look_up_bytes() -> tuple[str, list[str]]:
    """Look up four bytes of a level each: those at four times the code, and the three after it.

    Even places of a word are the lower halves of its bytes, odd ones the upper halves.
    """
    name = "@llvm.aarch64.neon.tbl4.v16i8"
    vector = "<16 x i8>"
    lines = ["%bytes = bitcast <4 x i32> %word to <16 x i8>"]
    for part in range(4):
        lines += [
            f"%part{part} = getelementptr {vector}, ptr %levels, i32 {part}",
            f"%table{part} = load {vector}, ptr %part{part}, align 4",
        ]
    lines += [
        # Four times each code.
        f"%even = shl {vector} %bytes, splat (i8 2)",
        f"%odd = lshr {vector} %bytes, splat (i8 2)",
        f"%codes0 = and {vector} %even, splat (i8 60)",
        f"%codes1 = and {vector} %odd, splat (i8 60)",
    ]
    following = ", ".join(f"i8 {byte % 4}" for byte in range(16))
    table = ", ".join(f"{vector} %table{part}" for part in range(4))
    for place in range(PER_WORD):
        order = ", ".join(f"i32 {byte // 4 * 4 + place // 2}" for byte in range(16))
        lines += [
            f"%spread{place} = shufflevector {vector} %codes{place % 2}, {vector} poison,"
            f" <16 x i32> <{order}>",
            f"%index{place} = or {vector} %spread{place}, <{following}>",
            f"%found{place} = call {vector} {name}({table}, {vector} %index{place})",
            f"%level{place} = bitcast {vector} %found{place} to <4 x float>",
        ]
    return f"declare {vector} {name}({', '.join([vector] * 5)})", lines
