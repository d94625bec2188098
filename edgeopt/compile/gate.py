"""Which functions stayed unscheduled, and how much of the model's work they are."""

from collections import Counter
from collections.abc import Sequence

import tvm
from tvm import relax, s_tir
from tvm.relax.expr_functor import PyExprVisitor, visitor

from edgeopt.artifact import Unscheduled
from edgeopt.compile.kernels.rule import Refusal, sorted_functions

#: Share of the FLOPs from which an unscheduled function is reported.
_HOT = 0.01


@visitor
class _Calls(PyExprVisitor):  # type: ignore[misc]
    """Count how often each loop-level function is called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def visit_call_(self, call: relax.Call) -> None:
        if isinstance(call.op, tvm.ir.Op) and call.op.name == "relax.call_tir":
            self.counts[str(call.args[0].name_hint)] += 1
        super().visit_call_(call)


def count_flops(module: tvm.IRModule) -> dict[str, float]:
    """Estimate the floating-point and integer operations of each function, over all its calls."""
    calls = _Calls()
    calls.visit_expr(module["main"])
    return {
        variable.name_hint: float(
            s_tir.analysis.estimate_tir_flops(tvm.IRModule({"main": function}))
        )
        * calls.counts[variable.name_hint]
        for variable, function in sorted_functions(module)
    }


def hot_functions(fused: tvm.IRModule, refusals: Sequence[Refusal]) -> tuple[Unscheduled, ...]:
    """List the refused functions that matter: any reduction, or more than 1 % of the FLOPs."""
    flops = count_flops(fused)
    total = sum(flops.values()) or 1.0
    found = []
    for refusal in refusals:
        share = flops[refusal.function] / total
        if refusal.reduction or share > _HOT:
            name = f"{refusal.function}: {refusal.reason}"
            found.append(Unscheduled(function=name, flops_share=round(share, 6)))
    return tuple(sorted(found, key=lambda each: (-each.flops_share, each.function)))
