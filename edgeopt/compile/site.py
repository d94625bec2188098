"""What a lowering sees of the graph around one call."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from tvm import relax, te

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels.attention import Batched
from edgeopt.compile.tables import Table
from edgeopt.compile.views import (
    constant_of,
    inside_permute,
    inside_reshape,
    permutation_of,
    shape_of,
)


@dataclass(frozen=True, slots=True)
class Emitted:
    """A batched product, what it was made of, and the call that computes it."""

    call: relax.Expr
    plan: Batched
    arguments: tuple[relax.Expr, ...]


@dataclass(frozen=True, slots=True)
class Relabelled:
    """A call that gives codes in the type that the model asks for, and those it was made of."""

    call: relax.Expr
    codes: relax.Expr


@dataclass(frozen=True, slots=True)
class IntegerSum:
    """A product or convolution of codes [..., columns] that can be emitted again."""

    #: int32 that each column starts from: the zero point's share, taken out.
    start: np.ndarray
    #: What one step of the sum is worth, per column.
    factor: np.ndarray
    #: Emits the int32 sums from what they start from; their rows may lie along one axis.
    emit: Callable[[np.ndarray], relax.Var]


@dataclass(frozen=True, slots=True)
class Site:
    """The builder, the bindings emitted so far, and the CPU that the code is for."""

    builder: relax.BlockBuilder
    lookup: Callable[[relax.Var], relax.Expr | None]
    cpu: Cpu
    #: Batched products emitted so far.
    products: list[Emitted] = field(default_factory=list)
    #: Gathers from constant tables emitted so far.
    tables: list[Table] = field(default_factory=list)
    #: Codes whose type is not the one that they are stored in.
    relabelled: list[Relabelled] = field(default_factory=list)
    #: Integer sums emitted so far, by the call that made float32 of them.
    sums: list[tuple[relax.Expr, IntegerSum]] = field(default_factory=list)

    def bound(self, expr: relax.Expr) -> relax.Expr:
        """Find what a variable is bound to; anything else is itself."""
        if isinstance(expr, relax.Var):
            found = self.lookup(expr)
            return expr if found is None else found
        return expr

    def call(
        self, define: Callable[..., te.Tensor], *arguments: relax.Expr | np.ndarray, name: str
    ) -> relax.Var:
        """Emit a kernel on expressions and constants; return the variable that holds its result."""
        expressions = [
            relax.const(value, value.dtype.name) if isinstance(value, np.ndarray) else value
            for value in arguments
        ]
        return self.builder.emit_te(define, *expressions, primfunc_name_hint=name)

    def emit(self, expr: relax.Expr) -> relax.Var:
        """Bind an expression to a variable."""
        return self.builder.emit(expr)

    def reshape(self, expr: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        """View a tensor under another shape."""
        inner = inside_reshape(self.bound(expr))
        while inner is not None:
            expr, inner = inner, inside_reshape(self.bound(inner))
        if shape_of(expr) == shape:
            return expr
        return self.emit(relax.op.reshape(expr, shape))

    def permute(self, expr: relax.Expr, axes: tuple[int, ...]) -> relax.Expr:
        """View a tensor with its axes in another order; two transposes that cancel are none."""
        bound = self.bound(expr)
        inner = inside_permute(bound)
        if inner is not None:
            before = permutation_of(bound)
            expr, axes = inner, tuple(before[axis] for axis in axes)
        shape = shape_of(expr)
        if axes == tuple(range(len(axes))):
            return expr
        if [axis for axis in axes if shape[axis] > 1] == [
            axis for axis in range(len(axes)) if shape[axis] > 1
        ]:
            return self.reshape(expr, tuple(shape[axis] for axis in axes))
        return self.emit(relax.op.permute_dims(expr, axes))

    def constant(self, expr: relax.Expr) -> np.ndarray | None:
        """Read a constant, also through reshapes of it."""
        bound = self.bound(expr)
        inner = inside_reshape(bound)
        if inner is not None:
            value = self.constant(inner)
            return None if value is None else value.reshape(shape_of(bound))
        return constant_of(bound)


#: Lowers one call to a variable, or returns None to leave it as it is.
Lowering = Callable[[Site, relax.Call], relax.Expr | None]
