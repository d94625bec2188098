"""ONNX graphs as Relax functions: each node by our converter, or by TVM's where that is right."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import tvm
from onnx import helper, numpy_helper
from tvm import relax, tirx

from edgeopt.compile import import_vision
from edgeopt.compile.blocked import call_look_up, spell_out, stored_levels, stored_places
from edgeopt.compile.operators import (
    CONVERTERS,
    Node,
    Result,
    Unsupported,
    codes,
    linear,
    lstm,
    quantized,
)
from edgeopt.compile.operators.fallback import TRUSTED, convert_by_tvm
from edgeopt.compile.operators.fold import LARGE, fold_node
from edgeopt.compile.operators.half import in_single
from edgeopt.compile.operators.narrow import CARRIERS, carrier_of, carry, narrow, widen
from edgeopt.compile.operators.node import dtype_of
from edgeopt.compile.recurrent import convert_recurrent
from edgeopt.compile.sparse import call_blocks
from edgeopt.compile.views import constant_of, shape_of
from edgeopt.errors import OperatorUnsupported

Inputs = Sequence[relax.Expr | None]
Attributes = Mapping[str, object]
#: Returns None to leave a node to TVM's own converter.
Converter = Callable[[relax.BlockBuilder, Inputs, Attributes], relax.Expr | None]

#: Calls that Relax has no operator for; structure.py lowers them.
DYNAMIC_QUANTIZE = "edgeopt.dynamic_quantize"
MATMUL_INTEGER = "edgeopt.matmul_integer"


def _call(name: str, arguments: Sequence[relax.Expr], result: tvm.ir.Type) -> relax.Call:
    return relax.op.call_pure_packed(name, *arguments, ty_args=[result])


def _cast(builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes) -> relax.Expr | None:
    """Keep large constants as they are stored: TVM would convert them at once."""
    del builder
    source = inputs[0]
    value = None if source is None else constant_of(source)
    if value is None or value.nbytes < LARGE:
        return None
    wanted = helper.tensor_dtype_to_np_dtype(int(str(attributes["to"])))
    return relax.op.astype(source, wanted.name)


def _gather(
    builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes
) -> relax.Expr | None:
    """Take rows; negative indices are the kernel's affair, not four more operators.

    Stored codes that choose from a few levels stay codes.
    """
    data, indices = inputs[0], inputs[1]
    if any(isinstance(each, relax.ShapeExpr) for each in (data, indices)):
        return None
    blocks = call_blocks(builder, data, indices)
    if blocks is not None:
        return builder.emit(blocks)
    if constant_of(data) is not None and constant_of(indices) is not None:
        return None
    found = stored_places(builder, indices)
    data = data if found is None else stored_levels(builder, data)
    levels = None if data is None else constant_of(data)
    if found is not None and levels is not None and levels.ndim == 1:
        return builder.emit(call_look_up(found[0], data, found[1]))
    if found is not None and levels is not None and levels.dtype == np.int8 and levels.ndim == 2:
        return spell_out(*found, levels)
    if indices is None or not isinstance(indices.ty, relax.TensorType):
        return None
    return relax.op.take(data, indices, int(str(attributes.get("axis", 0))))


def _clip(builder: relax.BlockBuilder, inputs: Inputs, attributes: Attributes) -> relax.Expr | None:
    """Limit with plain minimum and maximum, which can be fused; older versions by attributes."""
    source = inputs[0]
    if source is None or "min" in attributes or "max" in attributes:
        return None
    result = source
    for bound, limit in zip(inputs[1:3], (relax.op.maximum, relax.op.minimum), strict=True):
        if bound is not None:
            result = builder.emit(limit(result, _scalar(builder, bound)))
    return result


def _scalar(builder: relax.BlockBuilder, bound: relax.Expr) -> relax.Expr:
    """Give a tensor of one element the shape that broadcasts with any other."""
    value = constant_of(bound)
    if value is not None:
        return relax.const(value.reshape(()), value.dtype.name)
    return bound if shape_of(bound) == () else builder.emit(relax.op.reshape(bound, ()))


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

#: Operators on codes, of the standard and of onnxruntime.
_QUANTIZED = {
    **quantized.CONVERTERS,
    **codes.CONVERTERS,
    "DynamicQuantizeLSTM": lstm.dynamic_lstm,
}
_LINEAR = {"DequantizeLinear": linear.dequantize, "QuantizeLinear": linear.quantize}
#: Operators of onnxruntime's own domain that have a converter.
CONVERTED_MICROSOFT = frozenset(_QUANTIZED) | frozenset(_LINEAR)

#: Those of the standard: edgeopt.model.operators lists the same without importing TVM.
CONVERTED = (
    frozenset(CONVERTERS)
    | TRUSTED
    | frozenset(_CONVERTERS)
    | frozenset(_QUANTIZED)
    | {"Constant", "Shape", "Size"}
)
#: Operators that only move elements, of whatever type.
_MOVING = frozenset(
    {"Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
#: Operators that read codes of narrow types.
_READING = frozenset({"DequantizeLinear", "GatherBlockQuantized", "QuantizeLinear"})

#: What TVM and numpy raise for a node that they cannot take.
_FAILURES = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    Unsupported,
    ValueError,
)


def import_graph(
    graph: onnx.GraphProto, opset: int, expected: Mapping[str, onnx.TypeProto]
) -> tvm.IRModule:
    """Convert a graph of fixed shapes whose operators are all known.

    expected: what the standard infers of its values, by name; a converter that gives something
    else is refused. Raises OperatorUnsupported, which names the node.
    """
    return _Importer(opset, expected).convert(graph)


class _Importer:
    """Walks a graph once; every value is a Relax expression of a known type."""

    def __init__(self, opset: int, expected: Mapping[str, onnx.TypeProto]) -> None:
        self.opset = opset
        self.expected = expected
        self.builder = relax.BlockBuilder()
        self.values: dict[str, relax.Expr] = {}
        #: The narrow types of those values that travel as bytes.
        self.narrow: dict[str, str] = {}

    def convert(self, graph: onnx.GraphProto) -> tvm.IRModule:
        """Make the module whose main function is the graph."""
        stored = {each.name for each in graph.initializer}
        inputs = [self._variable(each) for each in graph.input if each.name not in stored]
        self.values = {each.name: each for each in inputs}
        with self.builder.function("main", params=inputs):
            with self.builder.dataflow():
                self._convert_nodes(graph)
                results = [self.values[each.name] for each in graph.output]
                result = self.builder.emit_output(
                    results[0] if len(results) == 1 else relax.Tuple(results)
                )
            self.builder.emit_func_output(result)
        module = self.builder.get()
        module["main"] = module["main"].with_attrs({"num_input": len(inputs)})
        return module

    def _variable(self, value: onnx.ValueInfoProto) -> relax.Var:
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or kind.elem_type == onnx.TensorProto.STRING:
            raise OperatorUnsupported(
                f"the input {value.name!r} cannot be compiled",
                why="it is no tensor of numbers",
                fix="give the model tensors of numbers only",
            )
        name = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        if name in CARRIERS:
            self.narrow[value.name] = name
        shape = [dim.dim_value for dim in kind.shape.dim]
        return relax.Var(value.name, relax.TensorType(shape, carrier_of(name)))

    def _convert_nodes(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self.values[tensor.name] = self._stored(tensor.name, numpy_helper.to_array(tensor))
        for node in graph.node:
            try:
                results = self._convert_node(node)
                for name, result in zip(node.output, results, strict=False):
                    if name:
                        self.values[name] = result
                self._check(node)
            except _FAILURES as error:
                raise _refusal(node, error) from error

    def _stored(self, name: str, value: np.ndarray) -> relax.Expr:
        if value.dtype.name in CARRIERS:
            self.narrow[name] = value.dtype.name
            value = carry(value)
        # Named, since Relax would make 32 bits of 64.
        return relax.const(value, value.dtype.name)

    def _convert_node(self, node: onnx.NodeProto) -> list[relax.Expr]:
        if any(name in self.narrow for name in node.input) and node.op_type not in _READING:
            return [self._convert_narrow(node)]
        folded = fold_node(node, self.values, self.opset)
        if folded is not None:
            names = zip(node.output, folded, strict=False)
            return [self._stored(name, value) for name, value in names]
        inputs = tuple(self.values[name] if name else None for name in node.input)
        given = self._node(node, inputs)
        if node.op_type == "Cast" and _target(node) in CARRIERS:
            self.narrow[node.output[0]] = _target(node)
            saturate = bool(given.integer("saturate", 1))
            return [narrow(given, given.input(0), _target(node), saturate=saturate)]
        if node.op_type == "QuantizeLinear" and linear.encoded_type(given) in CARRIERS:
            self.narrow[node.output[0]] = linear.encoded_type(given)
        converted = self._apply(given)
        if not isinstance(converted, relax.Expr):
            return [self.builder.normalize(each) for each in converted]
        converted = self.builder.normalize(converted)
        if isinstance(converted, relax.Tuple):
            return list(converted.fields)
        if isinstance(converted.ty, relax.TupleType):
            count = len(converted.ty.fields)
            return [self.builder.emit(relax.TupleGetItem(converted, i)) for i in range(count)]
        return [converted]

    def _node(self, node: onnx.NodeProto, inputs: tuple[relax.Expr | None, ...]) -> Node:
        attributes = {each.name: _attribute(each) for each in node.attribute}
        narrow_types = tuple(self.narrow.get(name, "") for name in node.input)
        count = len(node.output)
        return Node(node.op_type, inputs, attributes, count, self.opset, self.builder, narrow_types)

    def _convert_narrow(self, node: onnx.NodeProto) -> relax.Expr:
        """Convert a node that reads numbers of a narrow type, which can be copied or widened."""
        name = self.narrow.get(node.input[0])
        if name is None or node.op_type not in (*_MOVING, "Cast"):
            raise Unsupported(f"it computes with {name or 'a narrow type'}")
        source = self.values[node.input[0]]
        if node.op_type in _MOVING:
            self.narrow[node.output[0]] = name
            inputs = tuple(self.values[each] if each else None for each in node.input)
            moved = source if node.op_type == "Identity" else self._apply(self._node(node, inputs))
            assert isinstance(moved, relax.Expr)
            return self.builder.normalize(moved)
        wanted = _target(node)
        wide = widen(self._node(node, (source,)), source, name)
        if wanted in CARRIERS:
            self.narrow[node.output[0]] = wanted
            given = self._node(node, (source,))
            return narrow(given, wide, wanted, saturate=bool(given.integer("saturate", 1)))
        return self.builder.normalize(relax.op.astype(wide, wanted))

    def _apply(self, node: Node) -> Result:
        single = in_single(node, self._apply)
        if single is not None:
            return single
        special = _CONVERTERS.get(node.operator)
        if special is not None:
            converted = special(self.builder, [*node.inputs, *[None] * 8], node.attributes)
            if converted is not None:
                return converted
        if node.operator in _LINEAR:
            coded = _LINEAR[node.operator](node)
            return convert_by_tvm(node) if coded is None else coded
        if node.operator in _QUANTIZED:
            return _QUANTIZED[node.operator](node, self._apply)
        own = CONVERTERS.get(node.operator)
        return convert_by_tvm(node) if own is None else own(node)

    def _check(self, node: onnx.NodeProto) -> None:
        """Compare the types and shapes of results with what the standard infers."""
        for name in node.output:
            value, expected = self.values.get(name), self.expected.get(name)
            if value is None and name:
                raise Unsupported("one of its results is not computed")
            if value is None:
                continue
            if not isinstance(value.ty, relax.TensorType) or not _is_fixed(value):
                raise Unsupported("the shape of its result depends on the values of inputs")
            if expected is not None and expected.WhichOneof("value") != "tensor_type":
                raise Unsupported("its result is no tensor")
            if expected is not None:
                _compare(value, expected)


def _attribute(attribute: onnx.AttributeProto) -> object:
    """Read an attribute; several numbers as a tuple, which is what TVM's converters look for."""
    value = helper.get_attribute_value(attribute)
    return tuple(value) if isinstance(value, list) else value


def _target(node: onnx.NodeProto) -> str:
    """Read the type that a Cast converts to."""
    kinds = [each.i for each in node.attribute if each.name == "to"]
    return str(helper.tensor_dtype_to_np_dtype(kinds[0]).name)


def _is_fixed(value: relax.Expr) -> bool:
    shape = value.ty.shape
    return shape is not None and all(isinstance(size, tirx.IntImm) for size in shape)


def _compare(value: relax.Expr, expected: onnx.TypeProto) -> None:
    kind = expected.tensor_type
    if not expected.HasField("tensor_type") or not kind.elem_type:
        return
    found, wanted = dtype_of(value), helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    if found != carrier_of(wanted):
        raise Unsupported(f"its result would be {found} where the standard has {wanted}")
    if not kind.HasField("shape"):
        return
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    shape = shape_of(value)
    if len(shape) != len(sizes) or any(
        size not in (None, own) for size, own in zip(sizes, shape, strict=True)
    ):
        raise Unsupported(f"its result would have the shape {shape}, not the standard's {sizes}")


def _refusal(node: onnx.NodeProto, error: Exception) -> OperatorUnsupported:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1] if lines else type(error).__name__
    return OperatorUnsupported(
        f"{node.op_type} x1 ({node.name or node.output[0]}) cannot be compiled as it is used",
        why=reason if isinstance(error, Unsupported) else f"{type(error).__name__}: {reason}",
        fix="export the model without it, or replace it by operators of the ONNX standard",
    )
