"""One node of an ONNX graph as a converter sees it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from tvm import relax, te, tirx

from edgeopt.compile.views import constant_of, shape_of

#: Floats of 16 bits, as TVM spells them.
HALVES = ("float16", "bfloat16")
#: What a converter gives: one tensor, or one per output.
Result: TypeAlias = relax.Expr | Sequence[relax.Expr]


class Unsupported(Exception):
    """A node asks for something that no code here computes; the importer adds its name."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node whose inputs were converted: tensors of fixed shapes, None where left out."""

    operator: str
    inputs: tuple[relax.Expr | None, ...]
    attributes: Mapping[str, Any]
    #: How many results are wanted, trailing ones that nobody reads left out.
    outputs: int
    #: Version of the standard's operator set.
    opset: int
    builder: relax.BlockBuilder
    #: For each input the narrow type whose numbers travel as bytes, or "".
    narrow: tuple[str, ...] = ()

    def narrow_type(self, place: int) -> str:
        """Name the narrow type of an input; "" for others."""
        return self.narrow[place] if place < len(self.narrow) else ""

    def has(self, place: int) -> bool:
        """Tell whether an optional input is given."""
        return place < len(self.inputs) and self.inputs[place] is not None

    def input(self, place: int) -> relax.Expr:
        """Return an input that must be there."""
        if not self.has(place):
            raise Unsupported(f"its input {place} is missing")
        return self.inputs[place]

    def shape(self, place: int) -> tuple[int, ...]:
        """Read the shape of an input."""
        return shape_of(self.input(place))

    def dtype(self, place: int) -> str:
        """Read the element type of an input, as TVM spells it."""
        return dtype_of(self.input(place))

    def value(self, place: int) -> np.ndarray | None:
        """Read an input that must be constant; None where it is left out."""
        if not self.has(place):
            return None
        value = constant_of(self.input(place))
        if value is None:
            raise Unsupported(f"its input {place} depends on the model's inputs")
        return value

    def numbers(self, place: int) -> list[int] | None:
        """Read a constant input of integers as a list."""
        value = self.value(place)
        return None if value is None else [int(each) for each in value.reshape(-1)]

    def axes(self, name: str = "axes", place: int = 1) -> list[int] | None:
        """Read axes from the input, or from the attribute of older versions; None for all."""
        if name in self.attributes:
            return [int(each) for each in self.attributes[name]]
        return self.numbers(place)

    def integer(self, name: str, default: int) -> int:
        """Read an integer attribute."""
        return int(self.attributes.get(name, default))

    def real(self, name: str, default: float) -> float:
        """Read a float attribute."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Read a text attribute."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def emit(self, expr: relax.Expr) -> relax.Var:
        """Bind an expression to a variable."""
        return self.builder.emit(expr)

    def compute(
        self,
        shape: Sequence[int],
        element: Callable[..., tirx.Expr],
        *arguments: relax.Expr,
    ) -> relax.Var:
        """Emit an operator given by the formula of its elements: element(tensors, *index)."""

        def define(*tensors: te.Tensor) -> te.Tensor:
            return te.compute(
                tuple(shape), lambda *at: element(tensors, *at), name=self.operator.lower()
            )

        return self.builder.emit_te(define, *arguments, primfunc_name_hint=self.operator.lower())


#: Converts one node; raises Unsupported for what it does not compute.
Converter = Callable[[Node], Result]


def dtype_of(expr: relax.Expr) -> str:
    """Read the element type of a tensor, as TVM spells it."""
    return str(expr.ty.dtype.dtype)


def is_float(dtype: str) -> bool:
    """Tell whether numbers of a type have fractions."""
    return dtype.startswith(("float", "bfloat"))
