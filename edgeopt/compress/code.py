"""Predict the bytes of a model's compiled code from its graph: each distinct kernel has its own."""

from onnx import ModelProto

from edgeopt.model.product import constants_of, list_products, types_of

#: Bytes of what all code begins with; of a kernel that multiplies by stored weights, of one whose
#: operands are both integers, of what decodes the weights; of any other distinct operation. Least
#: squares over 23 bundles for x86-64: MiniLM-L6 (110 to 220 kB), silero-vad (103 to 134 kB), a
#: recogniser of text (495 to 760 kB) and a small CNN (54 kB) in all forms. What they leave is
#: within 1 % of the bytes that are pushed, but for silero-vad in int8-static: 1.4 %.
_BASE, _PRODUCT, _INTEGER, _DECODED, _OTHER = 4000, 6800, 10500, 800, 3400
#: What becomes part of what reads it, or moves nothing.
_INLINED = (
    "Cast", "Constant", "DequantizeLinear", "Dropout", "Expand", "Flatten", "Gather", "Identity",
    "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze",
)  # fmt: skip


def predict_code(model: ModelProto) -> int:
    """Predict the bytes of the code of a model whose types are inferred."""
    graph = model.graph
    types, constant = types_of(graph), constants_of(graph)
    products = list(list_products(model))
    size = _BASE
    for each in {product.key: product for product in products}.values():
        nodes = [graph.node[at] for at in each.nodes]
        codes = any(
            node.op_type in ("MatMulInteger", "ConvInteger")
            or (node.op_type == "DequantizeLinear" and node.input[0] not in constant)
            for node in nodes
        )
        size += _INTEGER if codes else _PRODUCT + _DECODED * (len(nodes) > 1)
    computed = {product.output for product in products}
    others = set()
    for node in graph.node:
        output = next(name for name in node.output if name)
        if output in constant or output in computed or node.op_type in _INLINED:
            continue
        attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
        others.add((node.op_type, *attributes, *(types.get(name) for name in node.input)))
    return size + _OTHER * len(others)
