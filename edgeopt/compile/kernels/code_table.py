"""Functions of one 8-bit code, looked up in a table of all 256: 16 codes at a time on 64-bit ARM.

The table fills sixteen vector registers. TBL reads 64 entries and gives zero beyond them; TBX keeps
there what was found before, so that four of them, each with codes counted from its own first entry,
find any code.
"""

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels.elementwise import WORTH_SHARING
from edgeopt.compile.kernels.scheduling import Block, Schedule, mark

KIND = "code_table"
CODES = 256
#: Codes of one vector, and entries that one instruction reads: those of four registers.
_LANES = 16
_ENTRIES = 64


def fits_table(cpu: Cpu, size: int) -> bool:
    """Tell whether so many codes can be looked up: one vector of them at least."""
    return cpu.machine == "aarch64" and size >= _LANES


def define_table(size: int, source: str, result: str) -> tirx.PrimFunc:
    """Write the function of codes [size], a table [256] in the order of uint8, and results [size].

    source and result are the types of codes, int8 or uint8. Where the size is ragged the last
    vector begins earlier: what it shares with the one before is found twice.
    """
    with IRBuilder() as made, builder.prim_func(s_tir=True):
        # TVM cannot count the operations of code that is written as vectors; there are none.
        builder.func_attr({"tirx.noalias": True, "estimated_flops": 0})
        codes = builder.arg("codes", builder.buffer((size,), source))
        table = builder.arg("table", builder.buffer((CODES,), result))
        output = builder.arg("output", builder.buffer((size,), result))
        with builder.sblock("root"), builder.sblock("table"):
            builder.reads(codes[0:size], table[0:CODES])
            builder.writes(output[0:size])
            builder.sblock_attr(mark(kind=KIND, pattern="opaque"))
            loop = builder.parallel if size >= WORTH_SHARING else builder.serial
            with loop(0, -(-size // _LANES)) as vector:
                first = vector * _LANES
                first = first if size % _LANES == 0 else tirx.min(first, size - _LANES)
                place = [tirx.Ramp(first, 1, _LANES)]
                builder.buffer_store(output, _look_up(codes, table, first), place)
    function: tirx.PrimFunc = made.get()
    return function


def _look_up(codes: tirx.Buffer, table: tirx.Buffer, first: tirx.Expr) -> tirx.Expr:
    place = codes.vload([first], f"{codes.dtype}x{_LANES}")
    step = tirx.Broadcast(tirx.const(_ENTRIES, codes.dtype), _LANES)
    vector = f"{table.dtype}x{_LANES}"
    found: list[tirx.Expr] = []
    for start in range(0, CODES, _ENTRIES):
        entries = [table.vload([at], vector) for at in range(start, start + _ENTRIES, _LANES)]
        place = place - step if found else place
        name = f"llvm.aarch64.neon.{'tbx4' if found else 'tbl4'}.v{_LANES}i8"
        found = [tirx.call_llvm_pure_intrin(vector, name, *found, *entries, place)]
    return found[0]


def schedule_table(sch: Schedule, cpu: Cpu, block: Block) -> None:
    """Do nothing: the function is written as it is to run."""
    del sch, cpu, block
