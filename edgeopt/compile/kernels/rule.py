"""The dispatch: which kernel family schedules a fused function, and why none did."""

from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import (
    amx_conv,
    attention,
    blocked,
    code_depthwise,
    code_products,
    code_table,
    columns,
    conv,
    conv_schedule,
    conv_tiles,
    elementwise,
    gemm,
    integer,
    integer_conv,
    packed,
    recurrent,
    reduction,
    rows,
    single_row,
    sparse,
    winograd,
)
from edgeopt.compile.kernels.scheduling import (
    Schedule,
    blocks_of,
    is_reduction,
    marked,
)

#: Attribute of a scheduled function that names the rule which took it.
RULE = "edgeopt.rule"

_RULES = {
    gemm.KIND: gemm.schedule_gemm,
    gemm.PACKED: packed.schedule_packed,
    gemm.ROW: single_row.schedule_row,
    blocked.KIND: blocked.schedule_blocked,
    integer.KIND: integer.schedule_integer,
    amx_conv.KIND: amx_conv.schedule_conv,
    code_depthwise.KIND: code_depthwise.schedule_depthwise,
    code_products.KIND: code_products.schedule_product,
    code_table.KIND: code_table.schedule_table,
    integer_conv.KIND: integer_conv.schedule_conv,
    attention.KIND: attention.schedule_attention,
    attention.PACKED: attention.schedule_packed,
    rows.KIND: rows.schedule_rows,
    columns.KIND: columns.schedule_columns,
    sparse.KIND: sparse.schedule_sparse,
    recurrent.KIND: recurrent.schedule_recurrent,
    conv_tiles.DENSE: conv_schedule.schedule_dense,
    winograd.KIND: winograd.schedule_winograd,
    conv.CHANNELWISE: conv_schedule.schedule_channelwise,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A function that stays as TVM wrote it, and why."""

    function: str
    reason: str
    #: Whether it sums or the like: such a function is never harmless.
    reduction: bool


def schedule_module(module: tvm.IRModule, cpu: Cpu) -> tuple[tvm.IRModule, tuple[Refusal, ...]]:
    """Schedule every function by the rule of its kernel; list those that no rule could take."""
    refusals: list[Refusal] = []
    scheduled = tvm.IRModule(dict(module.functions), attrs=module.attrs)
    for variable, function in sorted_functions(module):
        result = schedule_function(function, cpu, variable.name_hint)
        if isinstance(result, Refusal):
            refusals.append(result)
        else:
            scheduled.update_func(variable, result)
    return scheduled, tuple(refusals)


def sorted_functions(module: tvm.IRModule) -> list[tuple[tvm.ir.GlobalVar, tirx.PrimFunc]]:
    """List the loop-level functions by name, so that nothing depends on the order of a hash."""
    functions = [
        (variable, function)
        for variable, function in module.functions.items()
        if isinstance(function, tirx.PrimFunc)
    ]
    return sorted(functions, key=lambda pair: str(pair[0].name_hint))


def schedule_function(function: tirx.PrimFunc, cpu: Cpu, name: str) -> tirx.PrimFunc | Refusal:
    """Schedule one function, or say why it cannot be."""
    sch = s_tir.Schedule(function)
    if not blocks_of(sch):
        return Refusal(name, "it is one opaque block", True)
    reduces = any(is_reduction(sch, block) for block in blocks_of(sch))
    try:
        applied = _apply_rule(sch, cpu, reduces=reduces)
    except (RuntimeError, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Refusal(name, lines[-1] if lines else type(error).__name__, reduces)
    return sch.mod["main"].with_attr({"tirx.is_scheduled": True, RULE: applied})


def _apply_rule(sch: Schedule, cpu: Cpu, *, reduces: bool) -> str:
    """Apply the rule that a function is for, and name it."""
    for block in blocks_of(sch):
        kind = marked(sch, block, "kind")
        if kind is not None:
            _RULES[kind](sch, cpu, block)
            return kind
    if reduces:
        reduction.schedule_reduction(sch, cpu)
        return reduction.KIND
    elementwise.schedule_elementwise(sch, cpu)
    return "elementwise"
