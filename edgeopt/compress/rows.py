"""int8-rows: an embedding table as int8 with one scale per row."""

from onnx import TensorProto

from edgeopt.compress.codes import encode_weight
from edgeopt.compress.edit import Edit
from edgeopt.model.graph import Weight


def store_rows(edit: Edit, weight: Weight) -> None:
    """Store codes [V, D] and scales [V, 1]; only the rows looked up are decoded."""
    codes, scale = encode_weight(edit.value(weight), axis=0)
    table = edit.store(f"{weight.name}.int8", codes)
    scales = edit.store(f"{weight.name}.scale", scale[:, None])
    for node in edit.readers(weight.name):
        output = edit.replace(node)
        indices = node.input[1]
        rows = edit.insert(node, "Gather", (table, indices), f"{output}.int8", axis=0)
        factors = edit.insert(node, "Gather", (scales, indices), f"{output}.scale", axis=0)
        values = edit.insert(node, "Cast", (rows,), f"{output}.cast", to=TensorProto.FLOAT)
        edit.insert(node, "Mul", (values, factors), output)
    edit.forget(weight)
