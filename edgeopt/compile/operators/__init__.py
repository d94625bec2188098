"""Converters of ONNX operators to Relax, one function per operator, in one table."""

from edgeopt.compile.operators import arithmetic, structure
from edgeopt.compile.operators.node import Converter, Node, Result, Unsupported

__all__ = ["CONVERTERS", "Converter", "Node", "Result", "Unsupported"]

#: Operators that are computed as written here, by name.
CONVERTERS: dict[str, Converter] = arithmetic.CONVERTERS | structure.CONVERTERS
