"""Write recurrent layers of a fixed length as the products and gates that they are.

The compiler knows no LSTM and no GRU. Written step by step it needs none, and their weights are
those of MatMul, which every compression method knows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    helper,
    numpy_helper,
    shape_inference,
)

from edgeopt.model.graph import initializers

#: Longer sequences would make more nodes than the compiler takes in a minute.
LONGEST = 128

Floats = npt.NDArray[np.float32]
#: One step: a part of the projected inputs [1, B, G], state and cell [1, B, H], to the next two.
Step = Callable[[str, str, str], tuple[str, str]]

#: What a node may ask for; anything else must have its default, since the steps do not do it.
_USUAL = {"direction", "hidden_size", "linear_before_reset"}
_ACTIVATIONS = {"LSTM": [b"Sigmoid", b"Tanh", b"Tanh"], "GRU": [b"Sigmoid", b"Tanh"]}


def unroll_model(model: ModelProto) -> ModelProto:
    """Replace every plain LSTM and GRU of a known, short length; others stay as they are."""
    if not any(node.op_type in _STEPS for node in model.graph.node):
        return model
    model = shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    lengths = _lengths(graph)
    stored = initializers(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        if _plain(node, lengths, stored):
            layer = _Layer(node, lengths[node.input[0]], stored)
            nodes.extend(layer.unroll())
            graph.initializer.extend(layer.stored)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _lengths(graph: GraphProto) -> dict[str, tuple[int, int]]:
    """Map every tensor of three known dimensions to its steps and its batch."""
    found = {}
    for value in (*graph.input, *graph.value_info):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if len(sizes) == 3 and all(sizes):
            found[value.name] = (sizes[0], sizes[1])
    return found


def _plain(node: NodeProto, lengths: dict[str, tuple[int, int]], stored: dict[str, Any]) -> bool:
    """Say whether a node is a recurrent layer that asks for nothing unusual."""
    if node.op_type not in _STEPS or lengths.get(node.input[0], (LONGEST + 1, 0))[0] > LONGEST:
        return False
    inputs = dict(enumerate(node.input))
    return (
        not any(_asks(node, each) for each in node.attribute)
        # Lengths of sequences, and peepholes.
        and not (inputs.get(4) or inputs.get(7))
        and all(inputs[place] in stored for place in (1, 2))
        and (not inputs.get(3) or inputs[3] in stored)
    )


def _asks(node: NodeProto, attribute: AttributeProto) -> bool:
    """Say whether an attribute asks for something that the steps do not do."""
    if attribute.name == "activations":
        default = _ACTIVATIONS[node.op_type]
        return list(attribute.strings) not in (default, 2 * default)
    value = attribute.i or attribute.f or list(attribute.floats)
    return attribute.name not in _USUAL and bool(value)


@dataclass(slots=True)
class _Layer:
    """One recurrent node, and what takes its place."""

    node: NodeProto
    #: Steps and batch.
    length: tuple[int, int]
    known: dict[str, Any]
    stored: list[Any] = field(default_factory=list)
    made: list[NodeProto] = field(default_factory=list)

    def unroll(self) -> list[NodeProto]:
        """Make nodes whose results have the names of the layer's own outputs."""
        kind = next((each.s for each in self.node.attribute if each.name == "direction"), b"")
        reversals = {b"reverse": (True,), b"bidirectional": (False, True)}.get(kind, (False,))
        sequences, states, cells = [], [], []
        for direction, reverse in enumerate(reversals):
            steps, cell = self._run(direction, len(reversals), reverse=reverse)
            states.append(steps[0] if reverse else steps[-1])
            cells.append(cell)
            joined = self.add("Concat", *steps, axis=0)
            sequences.append(self.add("Unsqueeze", joined, self.store(np.array([1]))))
        outputs = zip(self.node.output, (sequences, states, cells), (1, 0, 0), strict=False)
        for name, parts, axis in outputs:
            if name:
                self.add("Concat", *parts, axis=axis, outputs=(name,))
        return self.made

    def _run(self, direction: int, total: int, *, reverse: bool) -> tuple[list[str], str]:
        """Make all steps of one direction: their outputs by time, and the last cell."""
        steps, batch = self.length
        inputs = [*self.node.input, *[""] * 8]
        weight, again = (self._value(inputs[place])[direction].T for place in (1, 2))
        hidden = again.shape[0]
        bias = self._value(inputs[3])[direction] if inputs[3] else np.zeros(2 * weight.shape[1])
        bias = bias.astype(np.float32).reshape(2, -1)
        zeros = np.zeros((1, batch, hidden), np.float32)
        state, cell = (
            self.split(inputs[place], total, axis=0)[direction]
            if inputs[place]
            else self.store(zeros)
            for place in (5, 6)
        )
        step, merged = _STEPS[self.node.op_type](self, again, bias)
        projected = self.add("MatMul", inputs[0], self.store(weight))
        projected = self.add("Add", projected, self.store(merged))
        parts = self.split(projected, steps, axis=0)
        made = [""] * steps
        for place in reversed(range(steps)) if reverse else range(steps):
            state, cell = step(parts[place], state, cell)
            made[place] = state
        return made, cell

    def _value(self, name: str) -> Floats:
        return numpy_helper.to_array(self.known[name]).astype(np.float32)

    def store(self, values: npt.NDArray[Any]) -> str:
        """Add a stored tensor under a name of this layer."""
        name = f"{next(filter(None, self.node.output))}:stored{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def add(self, operator: str, *inputs: str, outputs: tuple[str, ...] = (), **more: Any) -> str:
        """Add a node and return its first output."""
        name = f"{next(filter(None, self.node.output))}:{len(self.made)}"
        made = helper.make_node(operator, inputs, outputs or (name,), f"{name}:node", **more)
        self.made.append(made)
        return str(made.output[0])

    def split(self, name: str, count: int, *, axis: int, size: int = 1) -> tuple[str, ...]:
        """Cut a tensor into count parts of one size along an axis."""
        if count == 1:
            return (name,)
        parts = tuple(f"{name}:{len(self.made)}.{index}" for index in range(count))
        self.add("Split", name, self.store(np.full(count, size)), outputs=parts, axis=axis)
        return parts


def _lstm(layer: _Layer, again: Floats, bias: Floats) -> tuple[Step, Floats]:
    """Return a step of an LSTM and the bias of its inputs: input, output, forget, cell."""
    weight = layer.store(again)

    def step(part: str, state: str, cell: str) -> tuple[str, str]:
        gates = layer.add("Add", part, layer.add("MatMul", state, weight))
        *opened, new = layer.split(gates, 4, axis=2, size=len(again))
        enter, leave, forget = (layer.add("Sigmoid", each) for each in opened)
        added = layer.add("Mul", enter, layer.add("Tanh", new))
        cell = layer.add("Add", layer.add("Mul", forget, cell), added)
        return layer.add("Mul", leave, layer.add("Tanh", cell)), cell

    return step, bias.sum(axis=0)


def _gru(layer: _Layer, again: Floats, bias: Floats) -> tuple[Step, Floats]:
    """Return a step of a GRU and the bias of its inputs: update, reset, hidden."""
    hidden = again.shape[0]
    early, late = layer.store(again[:, : 2 * hidden]), layer.store(again[:, 2 * hidden :])
    shift = layer.store(bias[1, 2 * hidden :])
    linear = any(each.name == "linear_before_reset" and each.i for each in layer.node.attribute)

    def step(part: str, state: str, cell: str) -> tuple[str, str]:
        update, reset, new = layer.split(part, 3, axis=2, size=hidden)
        gates = layer.split(layer.add("MatMul", state, early), 2, axis=2, size=hidden)
        update = layer.add("Sigmoid", layer.add("Add", update, gates[0]))
        reset = layer.add("Sigmoid", layer.add("Add", reset, gates[1]))
        if linear:
            inner = layer.add("Add", layer.add("MatMul", state, late), shift)
            inner = layer.add("Mul", reset, inner)
        else:
            inner = layer.add("MatMul", layer.add("Mul", reset, state), late)
            inner = layer.add("Add", inner, shift)
        new = layer.add("Tanh", layer.add("Add", new, inner))
        # (1 - update) * new + update * state
        kept = layer.add("Mul", update, layer.add("Sub", state, new))
        return layer.add("Add", new, kept), cell

    merged = bias[0].copy()
    merged[: 2 * hidden] += bias[1, : 2 * hidden]
    return step, merged


_STEPS: dict[str, Callable[[_Layer, Floats, Floats], tuple[Step, Floats]]] = {
    "LSTM": _lstm,
    "GRU": _gru,
}
