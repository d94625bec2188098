"""When each tensor that the main function allocates is needed."""

from dataclasses import dataclass

import numpy as np
import tvm
import tvm_ffi
from tvm import relax

from edgeopt.compile.offsets import Lifetime

_ALLOCATIONS = ("relax.builtin.alloc_tensor", "relax.memory.alloc_tensor")

#: The allocated tensors, by position, that an expression may read or return parts of.
_Sources = frozenset[int]


@dataclass(frozen=True, slots=True)
class Allocation:
    """A tensor that main allocates: its variable, type, and when it is needed."""

    variable: relax.Var
    shape: tuple[int, ...]
    dtype: str
    lifetime: Lifetime


def bindings_of(function: relax.Function) -> list[relax.Binding]:
    """List a function's bindings in the order in which they run; their positions are steps."""
    return [binding for block in function.body.blocks for binding in block.bindings]


def is_allocation(expr: relax.Expr) -> bool:
    """Say whether an expression allocates a tensor."""
    is_operator = isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op)
    return is_operator and expr.op.name in _ALLOCATIONS


def read_allocations(function: relax.Function) -> tuple[Allocation, ...]:
    """List the tensors that a function allocates, each needed from its first use to its last.

    What is returned is needed until the end. Names, tuples and reshapes are other views of the
    same bytes: their uses count.
    """
    uses = _Uses()
    bindings = bindings_of(function)
    for step, binding in enumerate(bindings):
        uses.visit(step, binding)
    uses.use(uses.sources(function.body.body), len(bindings))
    return tuple(
        _describe(bindings[step].var, steps or [step]) for step, steps in uses.steps.items()
    )


def _describe(variable: relax.Var, steps: list[int]) -> Allocation:
    shape = tuple(int(extent) for extent in variable.ty.shape)
    dtype = str(variable.ty.dtype.dtype)
    size = int(np.prod(shape)) * tvm.DataType(dtype).itemsize
    return Allocation(variable, shape, dtype, Lifetime(size, steps[0], steps[-1]))


class _Uses:
    """The steps that use each allocated tensor, by the step that allocates it."""

    def __init__(self) -> None:
        self.steps: dict[int, list[int]] = {}
        self._sources: dict[relax.Var, _Sources] = {}
        self._fields: dict[relax.Var, list[_Sources]] = {}

    def visit(self, step: int, binding: relax.Binding) -> None:
        """Count a binding's uses, and note what its variable stands for."""
        value = binding.value
        if is_allocation(value):
            self.steps[step] = []
            self._sources[binding.var] = frozenset({step})
            return
        sources = self.sources(value)
        self.use(sources, step)
        # A kernel returns nothing: it writes to what it was given.
        is_kernel = isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar)
        self._sources[binding.var] = frozenset() if is_kernel else sources
        if isinstance(value, relax.Tuple):
            self._fields[binding.var] = [self.sources(field) for field in value.fields]
        elif value in self._fields:
            self._fields[binding.var] = self._fields[value]

    def use(self, sources: _Sources, step: int) -> None:
        """Count a use of tensors."""
        for source in sources:
            self.steps[source].append(step)

    def sources(self, expr: relax.Expr) -> _Sources:
        """Find the allocated tensors that an expression may contain."""
        if isinstance(expr, relax.TupleGetItem) and expr.tuple_value in self._fields:
            return self._fields[expr.tuple_value][int(expr.index)]
        found: set[int] = set()

        def visit(variable: relax.Var) -> None:
            found.update(self._sources.get(variable, frozenset()))

        tvm_ffi.structural_walk(expr, (relax.Var, visit), order="post")
        return frozenset(found)
