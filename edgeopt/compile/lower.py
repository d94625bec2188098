"""The passes from an imported module to scheduled code."""

from dataclasses import dataclass

import tvm
from tvm import relax, s_tir, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.fields import part_fields
from edgeopt.compile.kernels.rule import Refusal, schedule_module, sorted_functions
from edgeopt.compile.kernels.scheduling import blocks_of, marked
from edgeopt.compile.legalize import elementwise_legalizations
from edgeopt.compile.structure import lower_structure
from edgeopt.compile.tables import Table

#: How FuseOps may treat a function: TVM's kOutEWiseFusable and kOpaque.
_PATTERNS = {"epilogue": 4, "opaque": 8}


@dataclass(frozen=True, slots=True)
class Lowered:
    """A module whose functions are scheduled, the same before scheduling, and what was refused."""

    module: tvm.IRModule
    fused: tvm.IRModule
    refusals: tuple[Refusal, ...]
    tables: tuple[Table, ...]


def lower_module(module: tvm.IRModule, cpu: Cpu) -> Lowered:
    """Choose kernels, fuse what is elementwise into them, and schedule every function."""
    with cpu.target():
        module = relax.transform.CanonicalizeBindings()(module)
        module = relax.transform.EliminateCommonSubexpr()(module)
        module, tables = lower_structure(module, cpu)
        module = relax.transform.CanonicalizeBindings()(module)
        module = relax.transform.EliminateCommonSubexpr()(module)
        module = relax.transform.LegalizeOps(elementwise_legalizations(cpu))(module)
        module = relax.transform.DeadCodeElimination()(module)
        module = relax.transform.AnnotateTIROpPattern()(module)
        module = _mark_patterns(module)
        module = relax.transform.FoldConstant()(module)
        module = part_fields(module)
        module = relax.transform.FuseOps()(module)
        module = relax.transform.FuseTIR()(module)
        module = relax.transform.RewriteDataflowReshape()(module)
        fused = relax.transform.DeadCodeElimination()(module)
        scheduled, refusals = schedule_module(fused, cpu)
    return Lowered(scheduled, fused, refusals, tables)


def _mark_patterns(module: tvm.IRModule) -> tvm.IRModule:
    """Tell FuseOps what our kernels can take: epilogues, or nothing."""
    marked = tvm.IRModule(dict(module.functions), attrs=module.attrs)
    for variable, function in sorted_functions(module):
        pattern = _pattern_of(function)
        if pattern is not None:
            marked.update_func(variable, function.with_attr("op_pattern", _PATTERNS[pattern]))
    return marked


def _pattern_of(function: tirx.PrimFunc) -> str | None:
    sch = s_tir.Schedule(function)
    marks = (marked(sch, block, "pattern") for block in blocks_of(sch))
    return next((mark for mark in marks if mark is not None), None)
