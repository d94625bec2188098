"""Rewrite an ONNX graph: nodes put before others or in their place, tensors stored and dropped."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeopt.model.graph import (
    Weight,
    consumers,
    copy_without,
    infer_types,
    initializers,
    is_hollow,
)
from edgeopt.model.skim import SMALL

Array = npt.NDArray[Any]


class Edit:
    """Changes to one graph, made when it is finished; the order of the calls decides the bytes."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._stored = initializers(model.graph)
        self._readers = consumers(model.graph)
        self._ahead: dict[str, list[NodeProto]] = {}
        self._behind: dict[str, NodeProto] = {}
        self._replaced: set[str] = set()
        self._made: set[str] = set()
        self._hollow = {name for name, each in self._stored.items() if is_hollow(each)}

    def readers(self, name: str) -> list[NodeProto]:
        """Return the nodes of the original graph that read a tensor, in its order."""
        return self._readers[name]

    def value(self, weight: Weight) -> npt.NDArray[np.float32]:
        """Return the trained values of a weight; zeros where a hollow model has none."""
        if weight.name in self._hollow:
            return np.broadcast_to(np.float32(0), weight.shape)
        return numpy_helper.to_array(self._stored[weight.name]).astype(np.float32, copy=False)

    def rank(self, name: str) -> int:
        """Return how many axes a tensor of the original graph has."""
        if name in self._stored:
            return len(self._stored[name].dims)
        graph = self._model.graph
        known = (*graph.input, *graph.value_info, *graph.output)
        shapes = (each.type.tensor_type.shape for each in known if each.name == name)
        return len(next(shapes).dim)

    def store(self, name: str, values: Array) -> str:
        """Add a stored tensor, unless one of that name is there already, and return its name.

        What is made of a weight without values has none either, unless it is small.
        """
        if name in self._stored:
            return name
        if values.nbytes > SMALL and self._is_of_hollow(name):
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            self._stored[name] = TensorProto(name=name, data_type=kind, dims=values.shape)
        else:
            self._stored[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def _is_of_hollow(self, name: str) -> bool:
        """Tell whether a tensor is named after a weight without values."""
        while "." in name:
            name = name.rpartition(".")[0]
            if name in self._hollow:
                return True
        return False

    def put(self, weight: Weight, values: Array) -> None:
        """Change the values of a weight."""
        kept = np.ascontiguousarray(values, np.float32)
        self._stored[weight.name] = numpy_helper.from_array(kept, weight.name)

    def follow(self, node: NodeProto, operator: str, operand: str) -> None:
        """Put a node after one of the original graph: its readers read what this one makes."""
        output = node.output[0]
        node.output[0] = f"{output}.before"
        made = helper.make_node(operator, [node.output[0], operand], [output])
        made.name = f"{output}:{operator}"
        self._behind[node.output[0]] = made

    def forget(self, weight: Weight) -> None:
        """Remove a stored tensor that nothing reads any more."""
        del self._stored[weight.name]

    def has(self, name: str) -> bool:
        """Say whether an inserted node makes this tensor already."""
        return name in self._made

    def insert(
        self,
        before: NodeProto,
        operator: str,
        inputs: Sequence[str],
        output: str,
        **attributes: Any,
    ) -> str:
        """Put a node before another one of the original graph and return its first output."""
        return self.insert_many(before, operator, inputs, (output,), **attributes)

    def insert_many(
        self,
        before: NodeProto,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        **attributes: Any,
    ) -> str:
        """Put a node with several outputs before another one and return its first output."""
        node = helper.make_node(operator, inputs, outputs, name=f"{outputs[0]}:node", **attributes)
        self._ahead.setdefault(before.output[0], []).append(node)
        self._made.update(outputs)
        return outputs[0]

    def replace(self, node: NodeProto) -> str:
        """Drop a node of the original graph, whose output an inserted one now makes."""
        self._replaced.add(node.output[0])
        return str(node.output[0])

    def finish(self) -> ModelProto:
        """Return the changed model; shapes of inner tensors are inferred anew."""
        graph = self._model.graph
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes.extend(self._ahead.get(node.output[0], ()))
            if node.output[0] not in self._replaced:
                nodes.append(node)
            if node.output[0] in self._behind:
                nodes.append(self._behind[node.output[0]])
        changed = copy_without(self._model, ("node", "initializer", "value_info"))
        changed.graph.node.extend(nodes)
        changed.graph.initializer.extend(self._stored.values())
        return infer_types(changed)
