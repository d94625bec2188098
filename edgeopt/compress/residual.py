"""Branches of residual sums: y = x + f(x), of which cutting all units leaves y = x, or a constant.

What reads the last unit of a group gives zeros; where they only get biases on their way into a sum
with what the branch is computed of, the whole branch can go, as a layer does in LayerDrop (Fan et
al. 2019, arXiv 1909.11556, sec. 3.2, without its training): attention, a feed-forward net, a block
of convolutions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgeopt.model.graph import drop_unread, producers

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Branch:
    """The end of a branch: a sum, which of its operands the branch is, and what else it becomes."""

    #: The first output of the Add.
    total: str
    operand: str
    #: What the operand is once nothing is left of the branch: it broadcasts with the other one.
    constant: Array


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a branch is looked for."""

    shapes: Mapping[str, tuple[int, ...]]
    readers: Mapping[str, Sequence[NodeProto]]
    makers: Mapping[str, NodeProto]
    stored: Mapping[str, TensorProto]
    #: Inputs and outputs of the graph.
    outside: frozenset[str]


def find_branches(readers: Sequence[NodeProto], around: Surroundings) -> tuple[Branch, ...]:
    """Return the sums that products which read all units of a group end in.

    None where one of them ends otherwise: then something needs a unit.
    """
    found = [_follow(node, around) for node in readers]
    return tuple(each for each in found if each) if all(found) else ()


def _follow(product: NodeProto, around: Surroundings) -> Branch | None:
    """Follow zeros from a product, through biases and factors, to a sum with something else."""
    name, constant = product.output[0], _bias(product, around)
    while name not in around.outside:
        (node, *more) = around.readers.get(name, [product])
        if more or list(node.input).count(name) != 1:
            return None
        others = [each for each in node.input if each != name]
        if node.op_type not in ("Add", "Mul", "Identity") or len(others) > 1:
            return None
        if node.op_type == "Add" and others[0] not in around.stored:
            whole = around.shapes.get(others[0]) == around.shapes.get(node.output[0])
            residual = whole and _is_computed_of(name, others[0], around.makers)
            return Branch(node.output[0], name, constant) if residual else None
        if others and others[0] not in around.stored:
            return None
        if others:
            value = numpy_helper.to_array(around.stored[others[0]])
            constant = constant + value if node.op_type == "Add" else constant * value
        name = node.output[0]
    return None


def _is_computed_of(name: str, source: str, makers: Mapping[str, NodeProto]) -> bool:
    """Tell whether one tensor is computed of another: in any other sum neither is a branch."""
    waiting, seen = [name], {name}
    while waiting:
        node = makers.get(waiting.pop())
        new = set(node.input) - seen if node is not None else set()
        if source in new:
            return True
        seen |= new
        waiting.extend(new)
    return False


def _bias(product: NodeProto, around: Surroundings) -> Array:
    """Return what a product gives for an input of zeros."""
    bias = product.input[2] if len(product.input) > 2 else ""
    if bias not in around.stored:
        return np.zeros((), np.float32)
    value: Array = numpy_helper.to_array(around.stored[bias])
    if product.op_type == "Conv":
        return value.reshape(-1, *[1] * (len(around.shapes[product.output[0]]) - 2))
    factor = next((each.f for each in product.attribute if each.name == "beta"), 1.0)
    scaled: Array = value * np.float32(factor)
    return scaled


def remove_branches(model: ModelProto, branches: Sequence[Branch]) -> None:
    """Put constants in the place of branches, and leave out all that nothing reads any more."""
    makers = producers(model.graph)
    for branch in branches:
        node = makers[branch.total]
        left = [each for each in node.input if each != branch.operand]
        if branch.constant.any():
            kept = f"{branch.total}.left"
            value = np.ascontiguousarray(branch.constant.astype(np.float32))
            model.graph.initializer.append(numpy_helper.from_array(value, kept))
            left.append(kept)
        else:
            node.op_type = "Identity"
        del node.input[:]
        node.input.extend(left)
    drop_unread(model.graph)
