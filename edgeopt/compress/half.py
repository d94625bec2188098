"""float16: weights stored in half precision and computed with in single."""

import numpy as np
from onnx import TensorProto

from edgeopt.compress.edit import Edit
from edgeopt.model.graph import Weight


def store_half(edit: Edit, weight: Weight) -> None:
    """Store a weight as float16, cast where it is used; of a table, only the rows looked up."""
    half = edit.store(f"{weight.name}.half", edit.value(weight).astype(np.float16))
    readers = edit.readers(weight.name)
    if weight.role == "table":
        for node in readers:
            output = edit.replace(node)
            rows = edit.insert(node, "Gather", (half, node.input[1]), f"{output}.half", axis=0)
            edit.insert(node, "Cast", (rows,), output, to=TensorProto.FLOAT)
    else:
        edit.insert(readers[0], "Cast", (half,), weight.name, to=TensorProto.FLOAT)
    edit.forget(weight)
