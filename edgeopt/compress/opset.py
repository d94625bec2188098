"""Raise a model's operator set where that changes no operator's meaning.

onnx's own converter stops at operators of other domains and has crashed on real models. From the
lowest set that normalized models have, 17, few operators changed other than by new types: the
signatures in onnx.defs say which.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, defs, helper, numpy_helper

from edgeopt.errors import ModelError

#: Names of the standard's domain.
_STANDARD = ("", "ai.onnx")
#: Their meaning changed under the same signature: scales by group, then by channel.
_REDEFINED = {"GroupNormalization"}
#: Their axes became an input, in 18.
_REDUCTIONS = {
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSumSquare",
}  # fmt: skip


def opset_of(model: ModelProto) -> int:
    """Return the version of the standard's operators that a model uses."""
    return max(int(each.version) for each in model.opset_import if each.domain in _STANDARD)


def obstacle(model: ModelProto, opset: int) -> str | None:
    """Name an operator that keeps a model from a higher operator set; None when there is none."""
    old = opset_of(model)
    if old < opset:
        standard = (node.op_type for _, node in _nodes(model.graph) if node.domain in _STANDARD)
        for operator in dict.fromkeys(standard):
            if not _same(operator, old, opset):
                return str(operator)
    return None


def raise_opset(model: ModelProto, opset: int) -> None:
    """Change a model to an operator set, unless its own is as high; raises ModelError if it can't.

    What the model computes stays the same.
    """
    old = opset_of(model)
    if old >= opset:
        return
    found = obstacle(model, opset)
    if found is not None:
        raise ModelError(
            f"the model cannot hold this plan's weights: they need operator set {opset}",
            why=f"its {found} of operator set {old} means something else there",
            fix=f"export the model with opset {opset}, or choose a plan of larger weights",
        )
    for _, node in list(_nodes(model.graph)):
        if node.op_type in _REDUCTIONS and node.domain in _STANDARD:
            _give_axes(model.graph, node)
    for each in model.opset_import:
        if each.domain in _STANDARD:
            each.version = opset
    needed = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = max(model.ir_version, needed)


def _nodes(graph: GraphProto) -> Iterator[tuple[GraphProto, NodeProto]]:
    """Visit the nodes of a graph and of the graphs in its nodes."""
    for node in graph.node:
        yield graph, node
        for each in node.attribute:
            if each.type == AttributeProto.GRAPH:
                yield from _nodes(each.g)


@cache
def _same(operator: str, old: int, new: int) -> bool:
    """Say whether one means the same in both sets: nothing gone, nothing with a new default."""
    before, after = (defs.get_schema(operator, version, "") for version in (old, new))
    if before.since_version == after.since_version:
        return True
    if operator in _REDEFINED or len(after.inputs) < len(before.inputs):
        return False
    moved = {"axes"} if operator in _REDUCTIONS else set()
    kept = all(
        name in moved
        or (name in after.attributes and _default(after, name) == _default(before, name))
        for name in before.attributes
    )
    names = [each.name for each in before.inputs]
    return kept and names == [each.name for each in after.inputs[: len(names)]]


def _default(schema: defs.OpSchema, name: str) -> bytes:
    value: bytes = schema.attributes[name].default_value.SerializeToString(deterministic=True)
    return value


def _give_axes(graph: GraphProto, node: NodeProto) -> None:
    """Move a reduction's axes to an input; the main graph's tensors are known in all graphs."""
    axes = next((each for each in node.attribute if each.name == "axes"), None)
    if axes is None:
        return
    name = f"{node.output[0]}.axes"
    graph.initializer.append(numpy_helper.from_array(np.array(axes.ints, np.int64), name))
    node.input.append(name)
    node.attribute.remove(axes)
