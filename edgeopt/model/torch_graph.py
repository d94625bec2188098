"""An ONNX graph as a torch module: gradients for any model, without its source code.

The module computes one sample, as the graph does. run_batch computes many at once by torch's
vmap, so that shapes which the graph fixes (a Reshape to [1, 32, 384]) hold for each of them.
"""
# mypy: disable-error-code="misc"

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor, nn

from edgeopt.errors import ModelError
from edgeopt.model.graph import initializers
from edgeopt.model.skim import SMALL
from edgeopt.model.torch_linear import LINEAR
from edgeopt.model.torch_operators import Call, Compute, Operand
from edgeopt.model.torch_pointwise import POINTWISE
from edgeopt.model.torch_shapes import SHAPES

#: Every operator of the standard that a graph may have.
OPERATORS: Mapping[str, Compute] = {**POINTWISE, **SHAPES, **LINEAR}
_STANDARD = ("", "ai.onnx")

Feeds = Mapping[str, Tensor]


class TorchGraph(nn.Module):
    """An inference graph of fixed shapes; its parameters are the stored floats, by their names.

    Raises ModelError for operators that are not in OPERATORS, all of them named.
    """

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        graph = model.graph
        _refuse_unknown(graph.node)
        stored = {name: _plain(each) for name, each in initializers(graph).items()}
        self._calls = [_call(node, stored) for node in graph.node]
        self._outputs = [each.name for each in graph.output]
        floats = [name for name, value in stored.items() if value.dtype.kind == "f"]
        self._places = {name: place for place, name in enumerate(floats)}
        self._values = nn.ParameterList(nn.Parameter(_tensor(stored[name])) for name in floats)
        self._fixed = {
            name: _tensor(value) for name, value in stored.items() if name not in self._places
        }

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in the graph's order."""
        return list(self._outputs)

    @property
    def parameter_names(self) -> list[str]:
        """The names of the stored floats, in the graph's order."""
        return list(self._places)

    def parameter(self, name: str) -> nn.Parameter:
        """Return a stored float tensor by its name in the graph."""
        return self._values[self._places[name]]

    def forward(
        self,
        feeds: Feeds,
        offsets: Feeds | None = None,
        wanted: Sequence[str] | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute one sample, inputs of the graph's own shapes, to its outputs in their order.

        feeds may hold inner tensors too: what makes them, and nothing else, is not computed then.
        offsets are added to inner tensors, of the same shapes: the gradient of zeros there is the
        gradient of the tensor. wanted names tensors to return instead of the outputs.
        """
        offsets = offsets or {}
        values: dict[str, Operand] = {"": None, **self._fixed}
        values.update((name, self.parameter(name)) for name in self._places)
        values.update(feeds)
        targets = self._outputs if wanted is None else wanted
        for call in self._needed(targets, feeds):
            found = call.compute(call, *(values[name] for name in call.node.input))
            outputs = found if isinstance(found, tuple) else (found,)
            for name, output in zip(call.node.output, outputs, strict=False):
                values[name] = output + offsets[name] if name in offsets else output
        chosen = [values[name] for name in targets]
        return tuple(each for each in chosen if each is not None)

    def _needed(self, targets: Sequence[str], given: Feeds) -> list[Call]:
        """List the nodes that tensors depend on but those given, in the graph's order."""
        needed, found = set(targets), []
        for call in reversed(self._calls):
            if needed.intersection(call.node.output) and call.node.output[0] not in given:
                needed.update(call.node.input)
                found.append(call)
        return found[::-1]

    def call_of(self, output: str) -> Call:
        """Return the node that makes a tensor."""
        return next(call for call in self._calls if output in call.node.output)

    def run_batch(
        self,
        feeds: Feeds,
        offsets: Feeds | None = None,
        wanted: Sequence[str] | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute S samples, inputs and offsets [S, *shape], to outputs [S, *output shape]."""

        def compute(one: Feeds, added: Feeds) -> tuple[Tensor, ...]:
            return self.forward(one, added, wanted)

        found: tuple[Tensor, ...] = torch.func.vmap(compute)(dict(feeds), dict(offsets or {}))
        return found

    def write_to(self, model: ModelProto) -> None:
        """Store the parameters in the graph that they came from, in its own types."""
        for tensor in model.graph.initializer:
            if tensor.name in self._places:
                kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
                values = self.parameter(tensor.name).detach().numpy().astype(kind)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _refuse_unknown(nodes: Sequence[NodeProto]) -> None:
    unknown = {
        node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}"
        for node in nodes
        if node.domain not in _STANDARD or node.op_type not in OPERATORS
    }
    if unknown:
        raise ModelError(
            f"torch cannot run the graph's {', '.join(sorted(unknown))}",
            why="gradients are taken through torch, which needs a counterpart of every operator",
            fix="choose a plan without pruning, or export the model without these operators",
        )


def _call(node: NodeProto, stored: Mapping[str, Any]) -> Call:
    # Of weights only the parameters stay, which are copies.
    known = {at: stored[name] for at, name in enumerate(node.input) if name in stored}
    return Call(
        node=node,
        compute=OPERATORS[node.op_type],
        attributes={each.name: helper.get_attribute_value(each) for each in node.attribute},
        stored={at: value for at, value in known.items() if value.nbytes <= SMALL},
    )


def _plain(tensor: Any) -> Any:
    """Return a stored tensor in a type that numpy itself has: 4 and 2 bits as 8."""
    values = numpy_helper.to_array(tensor)
    if values.dtype.kind in "biuf":
        return values
    return values.astype(np.float32 if "float" in values.dtype.name else np.int8)


def _tensor(values: Any) -> Tensor:
    # A copy: arrays from a file cannot be written to, which torch warns of.
    return torch.from_numpy(np.array(values))
