"""Which functions stayed unscheduled, and how much of the model's work they are."""

from collections import Counter
from collections.abc import Sequence

import tvm
from tvm import relax, s_tir
from tvm.relax.expr_functor import PyExprVisitor, visitor

from edgeopt.artifact import Unscheduled
from edgeopt.compile.kernels.rule import RULE, sorted_functions
from edgeopt.compile.lower import Lowered
from edgeopt.errors import OperatorUnsupported

#: Share of the FLOPs that functions without a kernel may have together: as TVM writes them they
#: are tens of times slower, so that more would be felt.
_ALLOWED = 0.01


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


def unscheduled_functions(lowered: Lowered) -> tuple[Unscheduled, ...]:
    """List the functions that carry no rule, the largest share of the FLOPs first."""
    flops = count_flops(lowered.fused)
    total = sum(flops.values()) or 1.0
    reasons = {refusal.function: refusal.reason for refusal in lowered.refusals}
    found = []
    for variable, function in sorted_functions(lowered.module):
        name = str(variable.name_hint)
        if RULE not in (function.attrs or {}):
            reason = reasons.get(name, "it was made after scheduling")
            share = round(flops.get(name, 0.0) / total, 6)
            found.append(Unscheduled(function=f"{name}: {reason}", flops_share=share))
    return tuple(sorted(found, key=lambda each: (-each.flops_share, each.function)))


def check_scheduled(unscheduled: Sequence[Unscheduled]) -> None:
    """Raise OperatorUnsupported when functions without a kernel are more than 1 % of the FLOPs."""
    share = sum(each.flops_share for each in unscheduled)
    if share <= _ALLOWED:
        return
    shown = "; ".join(f"{each.function} ({each.flops_share:.1%})" for each in unscheduled[:5])
    raise OperatorUnsupported(
        f"{share:.1%} of the model's arithmetic has no fast kernel",
        why=shown + (f"; and {len(unscheduled) - 5} more" if len(unscheduled) > 5 else ""),
        fix="replace these operators, or accept slow code with --allow-unscheduled",
    )
