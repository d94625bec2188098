"""Leave units out of a graph: smaller tensors, the same operators, standard ONNX."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgeopt.compress.groups import Group, Network, find_groups, open_network
from edgeopt.compress.residual import remove_branches
from edgeopt.compress.ties import is_depthwise
from edgeopt.cut import Cut
from edgeopt.model.graph import drop_unread

Kept = npt.NDArray[np.bool_]
#: What stays along axes of tensors: by tensor, then by axis.
Masks = dict[str, dict[int, Kept]]


def groups_by_name(model: ModelProto) -> dict[str, Group]:
    """Map the name of each group of a graph to it."""
    return {each.name: each for each in find_groups(model)}


def misfit_cut(groups: Mapping[str, Group], cut: Cut) -> str | None:
    """Say why a graph with these groups cannot be cut so; None when it can."""
    if cut.group not in groups:
        return f"no units can be cut out of {cut.group!r}"
    units = groups[cut.group].units
    if not cut.kept and not groups[cut.group].branches:
        return f"{cut.group!r} is no branch of a sum, and one of its {units} units has to stay"
    if cut.kept and cut.kept[-1] >= units:
        return f"{cut.group!r} has {units} units, and unit {cut.kept[-1]} is to be kept"
    return None


def kept_units(group: Group, cut: Cut) -> Kept:
    """Return which units stay, [units]."""
    kept: Kept = np.zeros(group.units, bool)
    kept[list(cut.kept)] = True
    return kept


def cut_graph(model: ModelProto, cuts: Sequence[Cut], groups: Mapping[str, Group]) -> ModelProto:
    """Return the model without the units that no cut keeps; groups are those of the model.

    What remains computes as if the weights that read a unit were zero for it. Of a branch of which
    no unit is kept all goes.
    """
    network = open_network(model)
    masks = masks_of([each for each in cuts if each.kept], groups)
    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    gone = [end for cut in cuts if not cut.kept for end in groups[cut.group].branches]
    remove_branches(made, gone)
    for tensor in made.graph.initializer:
        values = numpy_helper.to_array(tensor)
        for axis, kept in masks.get(tensor.name, {}).items():
            values = np.compress(kept, values, axis)
        if tensor.name in masks:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    for node in made.graph.node:
        _mend(made, node, network, masks)
    drop_unread(made.graph)
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def masks_of(cuts: Sequence[Cut], groups: Mapping[str, Group]) -> Masks:
    """Return what cuts keep of every tensor that has their units."""
    masks: Masks = {}
    for cut in cuts:
        group = groups[cut.group]
        units = kept_units(group, cut)
        for name, label in group.labels.items():
            kept = (label.units < 0) | units[label.units]
            own = masks.setdefault(name, {})
            # Groups that a Concat joins lie along one axis.
            own[label.axis] = own[label.axis] & kept if label.axis in own else kept
    return masks


def _mend(model: ModelProto, node: NodeProto, network: Network, masks: Masks) -> None:
    """Change the sizes that a node has written in it."""
    output = node.output[0]
    if node.op_type == "Reshape" and output in masks:
        shape = list(network.axes[node.input[1]])
        for axis, kept in masks[output].items():
            if shape[axis] > 0:
                shape[axis] = int(kept.sum())
        node.input[1] = _store(model, f"{output}.shape", shape)
    elif node.op_type == "Conv" and output in masks and is_depthwise(node, network.shapes):
        for each in node.attribute:
            if each.name == "group":
                each.i = int(masks[output][1].sum())
    elif node.op_type == "Split" and any(name in masks for name in node.output):
        _mend_split(model, node, network, masks)


def _mend_split(model: ModelProto, node: NodeProto, network: Network, masks: Masks) -> None:
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    axis = given.get("axis", 0) % len(network.shapes[node.input[0]])
    sizes = [
        int(masks[name][axis].sum()) if axis in masks.get(name, {}) else network.shapes[name][axis]
        for name in node.output
    ]
    kept = [each for each in node.attribute if each.name != "num_outputs"]
    del node.attribute[:]
    node.attribute.extend(kept)
    del node.input[1:]
    node.input.append(_store(model, f"{node.output[0]}.split", sizes))


def _store(model: ModelProto, name: str, sizes: Sequence[int]) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
    return name
