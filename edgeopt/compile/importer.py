"""TVM's ONNX importer, with the operators that it converts in a way that loses something."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import tvm
from onnx import helper
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter, _get_convert_map

from edgeopt.compile import import_vision
from edgeopt.compile.recurrent import convert_recurrent
from edgeopt.compile.views import constant_of, shape_of

Inputs = Sequence[relax.Expr | None]
Attributes = Mapping[str, object]
#: Returns None to leave a node to TVM's own converter.
Converter = Callable[[relax.BlockBuilder, Inputs, Attributes], relax.Expr | None]

#: Calls that Relax has no operator for; structure.py lowers them.
DYNAMIC_QUANTIZE = "edgeopt.dynamic_quantize"
MATMUL_INTEGER = "edgeopt.matmul_integer"

#: Constants beyond this size in bytes are never converted while importing.
_LARGE = 4096


def _call(name: str, arguments: Sequence[relax.Expr], result: tvm.ir.Type) -> relax.Call:
    return relax.op.call_pure_packed(name, *arguments, ty_args=[result])


def _cast(builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes) -> relax.Expr | None:
    """Keep large constants as they are stored: TVM would convert them at once."""
    del builder
    source = inputs[0]
    value = None if source is None else constant_of(source)
    if value is None or value.nbytes < _LARGE:
        return None
    wanted = helper.tensor_dtype_to_np_dtype(int(str(attributes["to"])))
    return relax.op.astype(source, wanted.name)


def _gather(
    builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes
) -> relax.Expr | None:
    """Take rows; negative indices are the kernel's affair, not four more operators."""
    del builder
    data, indices = inputs[0], inputs[1]
    if any(isinstance(each, relax.ShapeExpr) for each in (data, indices)):
        return None
    if constant_of(data) is not None and constant_of(indices) is not None:
        return None
    if indices is None or not isinstance(indices.ty, relax.TensorType):
        return None
    return relax.op.take(data, indices, int(str(attributes.get("axis", 0))))


def _clip(builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes) -> relax.Expr | None:
    """Limit by constants with plain minimum and maximum, which can be fused."""
    del attributes
    bounds = [None if each is None else constant_of(each) for each in (inputs[1], inputs[2])]
    if any(bound is None for bound, each in zip(bounds, inputs[1:3], strict=False) if each):
        return None
    result = inputs[0]
    if bounds[0] is not None:
        result = builder.emit(relax.op.maximum(result, relax.const(bounds[0].reshape(()))))
    if bounds[1] is not None:
        result = builder.emit(relax.op.minimum(result, relax.const(bounds[1].reshape(()))))
    return result


def _dynamic_quantize(
    builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes
) -> relax.Expr:
    """Keep DynamicQuantizeLinear whole: codes, scale, zero point."""
    del attributes
    source = inputs[0]
    assert source is not None
    result = relax.TupleType(
        [
            relax.TensorType(shape_of(source), "uint8"),
            relax.TensorType((), "float32"),
            relax.TensorType((), "uint8"),
        ]
    )
    return builder.emit(_call(DYNAMIC_QUANTIZE, [source], result))


def _matmul_integer(
    builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes
) -> relax.Expr | None:
    """Keep a product of codes with a constant int8 matrix whole: codes, matrix, zero point."""
    del attributes
    codes, weight, zero, weight_zero = (*inputs, None, None)[:4]
    assert codes is not None
    assert weight is not None
    values = constant_of(weight)
    if values is None or values.dtype != np.int8 or values.ndim != 2:
        return None
    if weight_zero is not None and (
        constant_of(weight_zero) is None or np.any(constant_of(weight_zero))
    ):
        return None
    if zero is None:
        zero = relax.const(np.zeros((), codes.ty.dtype.dtype))
    if int(np.prod(shape_of(zero))) != 1:
        return None
    shape = (*shape_of(codes)[:-1], values.shape[1])
    return builder.emit(
        _call(MATMUL_INTEGER, [codes, weight, zero], relax.TensorType(shape, "int32"))
    )


_CONVERTERS: dict[str, Converter] = {
    "Cast": _cast,
    "Gather": _gather,
    "Clip": _clip,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "MatMulInteger": _matmul_integer,
    **{name: convert_recurrent(name) for name in ("LSTM", "GRU", "RNN")},
    **import_vision.CONVERTERS,
}

#: Every operator that can be imported.
KNOWN = frozenset(_get_convert_map()) | frozenset(_CONVERTERS) | {"Constant"}


class _Importer(ONNXGraphImporter):  # type: ignore[misc]
    """TVM's importer with our converters before its own."""

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        """Do nothing: operators were checked before."""

    def _convert_operator(
        self, op_name: str, inputs: Inputs, attrs: Attributes, opset: int
    ) -> relax.Expr:
        converter = _CONVERTERS.get(op_name)
        if converter is not None:
            padded = [*inputs, *[None] * 8]
            converted = converter(self.bb, padded, attrs)
            if converted is not None:
                return self.bb.normalize(converted)
        return super()._convert_operator(op_name, inputs, attrs, opset)


def import_graph(graph: onnx.GraphProto, opset: int) -> tvm.IRModule:
    """Convert a graph of fixed shapes whose operators are all known."""
    importer = _Importer({}, {}, keep_params_in_input=False, sanitize=False)
    return importer.from_onnx(graph, opset)
