"""What a torch counterpart of an ONNX operator is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from onnx import NodeProto
from torch import Tensor

from edgeopt.errors import ModelError

#: An input of a node; None where an optional one is absent.
Operand: TypeAlias = Tensor | None
#: Computes a node's outputs.
Compute: TypeAlias = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One node, and what is known of it before it runs."""

    node: NodeProto
    compute: Compute
    attributes: Mapping[str, Any]
    #: The stored inputs that are small, by their place.
    stored: Mapping[int, npt.NDArray[Any]]

    def get(self, name: str, default: Any) -> Any:
        """Return an attribute."""
        return self.attributes.get(name, default)

    def text(self, name: str, default: str) -> str:
        """Return an attribute that is text."""
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def integers(self, place: int, name: str = "") -> tuple[int, ...] | None:
        """Return integers that are an input in some operator sets and an attribute in others.

        None where they are absent. Raises ModelError where they are computed.
        """
        if name in self.attributes:
            given = self.attributes[name]
            return (given,) if isinstance(given, int) else tuple(given)
        if place in self.stored:
            return tuple(int(each) for each in np.ravel(self.stored[place]))
        if place < len(self.node.input) and self.node.input[place]:
            raise self.refusal(f"its input {self.node.input[place]!r} is computed")
        return None

    def refusal(self, why: str) -> ModelError:
        """Return the error for a form of an operator that has no counterpart."""
        return ModelError(
            f"torch cannot run the {self.node.op_type} that makes {self.node.output[0]!r}",
            why=why,
            fix="choose a plan without pruning, or export the model without this form",
        )
