"""The pass that replaces operators by kernels while views and stored weights can still be seen."""

from collections.abc import Mapping

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.legalize import LOWERINGS, REMAINING
from edgeopt.compile.sink import sink_views
from edgeopt.compile.site import Lowering, Site
from edgeopt.compile.tables import Table
from edgeopt.compile.views import operator_of


@mutator
class _Structure(PyExprMutator):  # type: ignore[misc]
    """Visit calls in program order: views sink towards the outputs, then kernels are chosen."""

    def __init__(self, module: tvm.IRModule, cpu: Cpu, lowerings: Mapping[str, Lowering]) -> None:
        super().__init__(module)
        self.lowerings = lowerings
        self.site = Site(self.builder_, self._bound, cpu)

    def _bound(self, variable: relax.Var) -> relax.Expr | None:
        """Find what a variable is bound to, through other variables and through tuples."""
        bound = self.lookup_binding(variable)
        while True:
            if isinstance(bound, relax.TupleGetItem):
                source = bound.tuple_value
                source = self._bound(source) if isinstance(source, relax.Var) else source
                if not isinstance(source, relax.Tuple):
                    return bound
                bound = source.fields[bound.index]
            if not isinstance(bound, relax.Var):
                return bound
            further = self.lookup_binding(bound)
            if further is None:
                return bound
            bound = further

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.builder_.normalize(self.visit_expr_post_order(call))
        if not isinstance(call, relax.Call):
            return call
        sunk = sink_views(self.site, call) if self.lowerings is LOWERINGS else None
        if sunk is not None:
            return sunk.restore(self._lower(sunk.call))
        return self._lower(call)

    def _lower(self, call: relax.Call) -> relax.Expr:
        lowering = self.lowerings.get(operator_of(call))
        if lowering is not None:
            lowered = lowering(self.site, call)
            if lowered is not None:
                return lowered
        return self.builder_.emit(call)


def lower_structure(module: tvm.IRModule, cpu: Cpu) -> tuple[tvm.IRModule, tuple[Table, ...]]:
    """Replace every operator that has a kernel of ours; list the tables that are read by rows."""
    chosen, tables = _lower(module, cpu, LOWERINGS)
    return _lower(chosen, cpu, REMAINING)[0], tables


def _lower(
    module: tvm.IRModule, cpu: Cpu, lowerings: Mapping[str, Lowering]
) -> tuple[tvm.IRModule, tuple[Table, ...]]:
    visitor = _Structure(module, cpu, lowerings)
    variable = module.get_global_var("main")
    visitor.builder_.update_func(variable, visitor.visit_expr(module[variable]))
    lowered = relax.transform.DeadCodeElimination()(visitor.builder_.get())
    return lowered, tuple(visitor.site.tables)
