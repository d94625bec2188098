"""Operators that the standard defines by others: replaced by their definition."""

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TypeProto, defs, inliner, shape_inference

#: Domains whose operators are the standard's own.
STANDARD = ("", "ai.onnx")
#: The domain of definitions while they wait to be inlined.
_PRIVATE = "edgeopt.definition"
#: Definitions lead to other definitions, at most so deep.
_DEEPEST = 8


def has_definition(node: NodeProto, opset: int) -> bool:
    """Tell whether the standard defines a node's operator by other operators."""
    if not defs.has(node.op_type, opset, _domain(node)):
        return False
    schema: Any = defs.get_schema(node.op_type, opset, _domain(node))
    return bool(schema.has_function or schema.has_context_dependent_function)


def opset_of(model: ModelProto, domain: str = "") -> int:
    """Read the version of a domain's operator set that a model imports; 0 where it does not."""
    names = STANDARD if domain in STANDARD else (domain,)
    return max((each.version for each in model.opset_import if each.domain in names), default=0)


def inline_definitions(model: ModelProto, known: frozenset[str]) -> ModelProto:
    """Replace functions of the file, and operators that are not known, by their definitions."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    for _ in range(_DEEPEST):
        unknown = list(_unknown(model, known))
        if not unknown:
            break
        model = _inline(model, unknown)
    return model


def _unknown(model: ModelProto, known: frozenset[str]) -> Iterator[int]:
    """Find the nodes that are to be replaced, by place."""
    for place, node in enumerate(model.graph.node):
        if node.domain in STANDARD and node.op_type in known and not _is_partial(node):
            continue
        if has_definition(node, opset_of(model, node.domain)):
            yield place


def _is_partial(node: NodeProto) -> bool:
    """Tell whether a node is asked for more than the known operator computes."""
    return node.op_type == "LayerNormalization" and any(node.output[1:])


def _inline(model: ModelProto, places: list[int]) -> ModelProto:
    described = ModelProto()
    described.CopyFrom(model)
    _describe_stored(described)
    types = infer_types(described)
    functions = []
    for place in places:
        node = described.graph.node[place]
        function = _define(node, opset_of(model, node.domain), types)
        if function is not None:
            function.domain, function.name = _PRIVATE, f"definition{place}"
            _raise_version(function, opset_of(model))
            _complete(node, opset_of(model, node.domain))
            node.domain, node.op_type = function.domain, function.name
            functions.append(function)
    described.functions.extend(functions)
    described.opset_import.append(onnx.helper.make_opsetid(_PRIVATE, 1))
    inlined = inliner.inline_local_functions(described)
    kept = [each for each in inlined.opset_import if each.domain != _PRIVATE]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def _define(node: NodeProto, opset: int, types: Mapping[str, TypeProto]) -> FunctionProto | None:
    """Read the newest definition that an operator set of this version knows."""
    schema: Any = defs.get_schema(node.op_type, opset, _domain(node))
    function = FunctionProto()
    versions = [each for each in schema.function_opset_versions if each <= opset]
    if versions:
        function.ParseFromString(schema.get_function_with_opset_version(max(versions)))
        return function
    versions = [each for each in schema.context_dependent_function_opset_versions if each <= opset]
    if not versions:
        return None
    arguments = [types.get(name, TypeProto()).SerializeToString() for name in node.input]
    function.ParseFromString(
        schema.get_context_dependent_function_with_opset_version(
            max(versions), node.SerializeToString(), arguments
        )
    )
    return function


def _raise_version(function: FunctionProto, opset: int) -> None:
    """Say that a body is of the model's version where all of its operators still take it.

    The inliner leaves a body of another version alone.
    """
    for needed in function.opset_import:
        if needed.domain in STANDARD and all(_accepts(node, opset) for node in function.node):
            needed.version = opset


def _accepts(node: NodeProto, opset: int) -> bool:
    if not defs.has(node.op_type, opset, _domain(node)):
        return False
    schema: Any = defs.get_schema(node.op_type, opset, _domain(node))
    named = all(each.name in schema.attributes for each in node.attribute)
    return named and schema.min_input <= len(node.input) <= schema.max_input


def _complete(node: NodeProto, opset: int) -> None:
    """Write attributes that have their default, which definitions refer to."""
    schema: Any = defs.get_schema(node.op_type, opset, _domain(node))
    given = {each.name for each in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            node.attribute.add().CopyFrom(attribute.default_value)


def _describe_stored(model: ModelProto) -> None:
    """Say what type the stored tensors have: inference alone does not keep it."""
    for tensor in model.graph.initializer:
        model.graph.value_info.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )


def infer_types(model: ModelProto) -> dict[str, TypeProto]:
    """Infer types and shapes of all values, as far as the standard can, by name."""
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    return {each.name: each.type for each in (*graph.input, *graph.value_info, *graph.output)}


def _domain(node: NodeProto) -> str:
    return "" if node.domain in STANDARD else node.domain
