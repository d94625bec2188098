"""Predict the bytes of a model's compiled code from its graph: each distinct kernel has its own."""

from onnx import ModelProto, NodeProto

from edgeopt.model.graph import producers
from edgeopt.model.product import constants_of, list_products, types_of

#: Bytes of what all code begins with; of a kernel that multiplies by stored weights, in whatever
#: form, of one whose operands are both integers, and of any other distinct operation. Least
#: squares over 23 bundles for x86-64: MiniLM-L6 (110 to 220 kB), silero-vad (103 to 134 kB), a
#: recogniser of text (495 to 760 kB) and a small CNN (54 kB) in all forms. What they leave is
#: within 1.1 % of the bytes that are pushed, but for silero-vad in int8-static: 1.3 %. The first
#: has two pages more, so that a limit that is named as enough is enough for a small model.
_BASE, _PRODUCT, _INTEGER, _OTHER = 12000, 7200, 10500, 3400
#: What becomes part of what reads it, or moves nothing.
_INLINED = (
    "Cast", "Constant", "DequantizeLinear", "Dropout", "Expand", "Flatten", "Gather", "Identity",
    "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze",
)  # fmt: skip


def predict_code(model: ModelProto) -> int:
    """Predict the bytes of the code of a model whose types are inferred.

    All forms that weights alone may have count the same, two factors as the weight that they stand
    for: bytes of a mixture then add up by weight.
    """
    graph = model.graph
    types, constant, made_by = types_of(graph), constants_of(graph), producers(graph)
    products = {each.output: each.nodes for each in list_products(model)}
    # Products that another takes as they are.
    first = {made_by[name].input[0] for name in products} & set(products)
    sizes: dict[tuple[object, ...], int] = {}
    for node in graph.node:
        output = next(name for name in node.output if name)
        if output in constant or output in first or node.op_type in _INLINED:
            continue
        size, read = _OTHER, list(node.input)
        if output in products:
            nodes = [graph.node[at] for at in products[output]]
            size = _INTEGER if any(_is_integer(each, constant) for each in nodes) else _PRODUCT
            source = read[0]
            while source in first:
                source = made_by[source].input[0]
            read = [source, output]
        attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
        sizes[node.op_type, *attributes, *map(types.get, read)] = size
    return _BASE + sum(sizes.values())


def _is_integer(node: NodeProto, constant: set[str]) -> bool:
    """Tell whether a node of a product multiplies codes, or decodes what it is given from them."""
    decodes = node.op_type == "DequantizeLinear" and node.input[0] not in constant
    return decodes or node.op_type.endswith("Integer")
