"""Which operators can be compiled: a look at the graph before anything slow starts.

The compiler takes seconds to import, and what only fits a model never needs it: its operators are
listed here.
"""

from pathlib import Path

import onnx

from edgeopt.errors import OperatorUnsupported
from edgeopt.model.skim import skim_model
from edgeopt.model.standard import STANDARD, inline_definitions

#: The domain of onnxruntime's own operators.
MICROSOFT = "com.microsoft"
#: Every operator that the compiler converts, other than those that the standard defines by others.
KNOWN = frozenset({
    "Abs", "Acos", "Acosh", "Add", "AllClassNMS", "And", "ArgMax", "ArgMin", "Asin", "Asinh",
    "Atan", "Atanh", "AveragePool", "BatchNormalization", "BiasGelu", "BitCast", "BitShift",
    "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Clip", "Compress",
    "Concat", "ConcatFromSequence", "Constant", "ConstantOfShape", "Conv", "ConvInteger",
    "ConvTranspose", "Cos", "Cosh", "CumProd", "CumSum", "DepthToSpace", "DequantizeLinear",
    "Div", "Dropout", "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul",
    "Einsum", "Elu", "EmbedLayerNormalization", "Equal", "Erf", "Exp", "Expand", "EyeLike",
    "FastGelu", "Flatten", "Floor", "GRU", "Gather", "GatherBlockQuantized", "GatherElements",
    "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater",
    "GreaterOrEqual", "GridSample", "HardSigmoid", "HardSwish", "Hardmax", "Identity",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "LpPool", "MatMul",
    "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat", "MatMulNBits", "Max", "MaxPool",
    "MaxRoiPool", "MaxUnpool", "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul",
    "Neg", "NonMaxSuppression", "NonZero", "Not", "OneHot", "Optional", "OptionalGetElement",
    "OptionalHasElement", "Or", "PRelu", "Pad", "Pow", "QGemm", "QLinearAdd",
    "QLinearAveragePool", "QLinearConcat", "QLinearConv", "QLinearGlobalAveragePool",
    "QLinearLeakyRelu", "QLinearMatMul", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax",
    "QLinearWhere", "QuantizeLinear", "RNN", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign", "Round",
    "Scatter", "ScatterElements", "ScatterND", "Selu", "SequenceAt", "SequenceConstruct",
    "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "Shape", "Shrink",
    "Sigmoid", "Sign", "Sin", "Sinh", "Size", "SkipLayerNormalization", "Slice", "Softmax",
    "Softplus", "Softsign", "SpaceToDepth", "Split", "SplitToSequence", "Sqrt", "Squeeze",
    "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu",
    "Unique", "Unsqueeze", "Upsample", "Where", "Xor",
})  # fmt: skip
#: Operators of onnxruntime's own domain that it converts.
KNOWN_MICROSOFT = frozenset({
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul",
    "GatherBlockQuantized", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QGemm",
    "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearConv",
    "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMatMul", "QLinearMul",
    "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QuantizeLinear",
})  # fmt: skip


def check_operators(path: Path) -> None:
    """Refuse a graph with operators that cannot be compiled; name nodes and counts.

    Raises OperatorUnsupported. Reads the graph only: no weights, nothing slow.
    """
    check_nodes(inline_definitions(skim_model(path), KNOWN), path.name)


def check_nodes(model: onnx.ModelProto, name: str) -> None:
    """Refuse nodes that no converter takes, of a model that is called name."""
    unknown: dict[str, list[str]] = {}
    for node in model.graph.node:
        standard = node.domain in STANDARD
        known = KNOWN if standard else KNOWN_MICROSOFT if node.domain == MICROSOFT else ()
        if node.op_type not in known:
            operator = node.op_type if standard else f"{node.domain}.{node.op_type}"
            unknown.setdefault(operator, []).append(node.name or node.output[0])
    if unknown:
        raise OperatorUnsupported(
            f"{name} has operators that cannot be compiled",
            why="; ".join(_describe(name, nodes) for name, nodes in sorted(unknown.items())),
            fix="export the model without them, or replace them by operators of the ONNX standard",
        )


def _describe(operator: str, nodes: list[str]) -> str:
    shown = ", ".join(nodes[:3])
    return f"{operator} x{len(nodes)} ({shown}{', ...' if len(nodes) > 3 else ''})"
