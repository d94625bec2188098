"""int8-dynamic: activations quantized at run time, products summed in integers."""

from onnx import NodeProto, TensorProto

from edgeopt.compress.codes import encode_weight
from edgeopt.compress.edit import Edit
from edgeopt.model.graph import Weight


def quantize_dynamic(edit: Edit, weight: Weight) -> None:
    """Replace MatMul by DynamicQuantizeLinear, MatMulInteger (uint8 by int8), Cast and Mul.

    A Gemm becomes the same with its bias added. Its attributes were checked by the planner:
    alpha and beta are one, and the activation is not transposed.
    """
    transposed = weight.role == "gemm" and weight.axis == 0
    values = edit.value(weight)
    codes, scale = encode_weight(values.T if transposed else values, axis=1)
    stored = edit.store(f"{weight.name}.int8", codes)
    scales = edit.store(f"{weight.name}.scale", scale)
    for node in edit.readers(weight.name):
        _multiply(edit, node, stored, scales)
    edit.forget(weight)


def _multiply(edit: Edit, node: NodeProto, codes: str, scales: str) -> None:
    """Put the integer form of one node in its place."""
    output = edit.replace(node)
    source = node.input[0]
    parts = (f"{source}.u8", f"{source}.u8.scale", f"{source}.u8.zero")
    if not edit.has(parts[0]):
        # Once for all that read the activation, so before the first of them.
        edit.insert_many(edit.readers(source)[0], "DynamicQuantizeLinear", (source,), parts)
    total = edit.insert(node, "MatMulInteger", (parts[0], codes, parts[2]), f"{output}.int32")
    number = edit.insert(node, "Cast", (total,), f"{output}.cast", to=TensorProto.FLOAT)
    factor = edit.insert(node, "Mul", (parts[1], scales), f"{output}.factor")
    bias = node.input[2] if len(node.input) > 2 else ""
    product = edit.insert(node, "Mul", (number, factor), f"{output}.product" if bias else output)
    if bias:
        edit.insert(node, "Add", (product, bias), output)
