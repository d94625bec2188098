"""Read the facts of an ONNX file; runs in a worker, the file is not trusted."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from edgeopt.errors import ModelError

#: Element types narrower than a byte, as bits.
_NARROW: dict[int, int] = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4}


def describe_file(path: str) -> dict[str, object]:
    """Return inputs, outputs, parameters and external data entries; no other file is read.

    Unknown dimensions are -1.
    """
    model = onnx.load(path, load_external_data=False)
    entries = [_external(each) for each in tensors(model) if _is_external(each)]
    return {"external": entries, **facts(model)}


def facts(model: ModelProto) -> dict[str, object]:
    """Return inputs and outputs as TensorSpec's fields, and the number of trained values."""
    graph = model.graph
    stored = {each.name for each in graph.initializer}
    if not graph.output:
        raise ModelError("the model has no outputs", fix="export it again")
    return {
        "inputs": [spec(each) for each in graph.input if each.name not in stored],
        "outputs": [spec(each) for each in graph.output],
        "parameters": sum(math.prod(each.dims) for each in graph.initializer),
    }


def spec(value: ValueInfoProto) -> dict[str, object]:
    """Return name, numpy element type and shape of a graph's input or output."""
    tensor = value.type.tensor_type
    if value.type.WhichOneof("value") != "tensor_type" or not tensor.elem_type:
        raise ModelError(
            f"{value.name!r} is not a tensor",
            why="sequences, maps and optionals have no fixed size",
            fix="export the model with tensors as its inputs and outputs",
        )
    # Some exporters write an open dimension as -1 or 0.
    shape = [dim.dim_value if dim.dim_value > 0 else -1 for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": dtype_name(tensor.elem_type), "shape": shape}


def dtype_name(elem_type: int) -> str:
    """Return ONNX's element type as numpy spells it."""
    return str(helper.tensor_dtype_to_np_dtype(elem_type).name)


def tensors(message: Any) -> Iterator[TensorProto]:
    """Yield every tensor in a model: initializers, attributes, subgraphs and functions."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        parts = [value] if hasattr(value, "ListFields") else value
        for each in parts:
            if isinstance(each, TensorProto):
                yield each
            else:
                yield from tensors(each)


def inline_external(path: str, output: str) -> dict[str, object]:
    """Write the model with all data inside one file; the entries were checked before."""
    folder = str(Path(path).parent.resolve())
    model = onnx.load(path, load_external_data=False)
    for tensor in tensors(model):
        if _is_external(tensor):
            onnx.external_data_helper.load_external_data_for_tensor(tensor, folder)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    onnx.save_model(model, output)
    return {}


def check_values(model: ModelProto) -> None:
    """Refuse trained values that are not numbers. Minus infinity is a mask, and allowed."""
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind != "f" or not values.size:
            continue
        if np.isnan(values).any() or np.isposinf(values).any():
            raise ModelError(
                f"the tensor {tensor.name!r} holds values that are not finite numbers",
                why="NaN and infinity make every comparison of outputs meaningless",
                fix="train or export the model again",
            )


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL or len(tensor.external_data) > 0


def _external(tensor: TensorProto) -> dict[str, object]:
    entries = {each.key: each.value for each in tensor.external_data}
    bits = _NARROW.get(tensor.data_type) or 8 * np.dtype(dtype_name(tensor.data_type)).itemsize
    return {
        "tensor": tensor.name,
        "location": entries.get("location", ""),
        "offset": int(entries.get("offset", "0")),
        "length": int(entries["length"]) if "length" in entries else None,
        "needed": -(-math.prod(tensor.dims) * bits // 8),
    }
