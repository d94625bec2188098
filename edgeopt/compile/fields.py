"""Results of a function that has several, kept apart from what is fused.

TVM's FuseOps hands a fused function the fields of a tuple instead of the tuple, which moves the
parameters behind it, but finds those of the next tuple where they were before. A function that
reads several fields of several tuples then comes out with parameters that nobody passes.
"""

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from edgeopt.compile.views import operator_of

#: TVM's kOpaque: nothing is fused with such a function.
_OPAQUE = 8


@mutator
class _Fields(PyExprMutator):  # type: ignore[misc]
    """Bind the fields of what opaque functions give to variables that a block shows outside."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.module = module

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        value = binding.value
        if not isinstance(value, relax.TupleGetItem):
            super().visit_var_binding_(binding)
            return
        source = self.visit_expr(value.tuple_value)
        made = self._maker(source)
        if isinstance(made, relax.Tuple):
            self.set_var_remap(binding.var, made.fields[value.index])
        elif self._is_opaque(made):
            field = self.builder_.emit_output(relax.TupleGetItem(source, value.index))
            self.set_var_remap(binding.var, field)
        else:
            super().visit_var_binding_(binding)

    def _maker(self, made: relax.Expr | None) -> relax.Expr | None:
        """Find what makes a tuple; None for a parameter."""
        while isinstance(made, relax.Var):
            made = self.lookup_binding(made)
        return made

    def _is_opaque(self, made: relax.Expr | None) -> bool:
        if made is None or operator_of(made) != "relax.call_tir":
            return False
        function = self.module[made.args[0]]
        pattern = function.attrs.get("op_pattern") if isinstance(function, tirx.PrimFunc) else None
        return pattern is not None and int(pattern) == _OPAQUE


def part_fields(module: tvm.IRModule) -> tvm.IRModule:
    """Let nothing be fused with the results of opaque functions, nor through tuples of results."""
    visitor = _Fields(module)
    variable = module.get_global_var("main")
    visitor.builder_.update_func(variable, visitor.visit_expr(module[variable]))
    return visitor.builder_.get()
