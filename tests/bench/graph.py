"""A small builder of ONNX graphs: one method call per node, seeded weights."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

#: LayerNormalization exists since 17; Gelu is written out as exporters of that age do.
OPSET = 18
_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


class GraphBuilder:
    """Nodes and initializers in the order of their making; names are numbers."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._stored: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> str:
        """Declare an input."""
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], list(shape)))
        return name

    def constant(self, values: NDArray[Any] | float) -> str:
        """Store an initializer; Python floats become float32 scalars."""
        name = self._name()
        array = np.float32(values) if isinstance(values, float) else values
        self._stored.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def normal(self, *shape: int, scale: float) -> str:
        """Store seeded normal weights, float32."""
        values = self.random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return self.constant(values)

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return its first output; the others have its name and a number."""
        first = self._name()
        names = [first, *(f"{first}_{index}" for index in range(1, outputs))]
        self._nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
        return first

    def dense(self, x: str, weight: NDArray[Any], bias: NDArray[Any]) -> str:
        """Multiply [.., K] by [K, N] and add [N]."""
        return self.node("Add", self.node("MatMul", x, self.constant(weight)), self.constant(bias))

    def gelu(self, x: str) -> str:
        """Write x / 2 (1 + erf(x / sqrt 2)) out."""
        bent = self.node("Erf", self.node("Div", x, self.constant(float(np.sqrt(2.0)))))
        shifted = self.node("Add", bent, self.constant(1.0))
        return self.node("Mul", self.node("Mul", x, shifted), self.constant(0.5))

    def reshape(self, x: str, *shape: int) -> str:
        """Give a tensor another shape."""
        return self.node("Reshape", x, self.constant(np.array(shape, np.int64)))

    def conv(
        self,
        x: str,
        channels: tuple[int, int],
        *,
        size: int,
        stride: int = 1,
        groups: int = 1,
        activation: str = "",
    ) -> str:
        """Convolve NCHW with "same" padding; He-scaled weights; relu, relu6, silu or nothing."""
        come, go = channels
        fan = come // groups * size * size
        weight = self.normal(go, come // groups, size, size, scale=float(np.sqrt(2 / fan)))
        y = self.node(
            "Conv",
            x,
            weight,
            self.normal(go, scale=0.1),
            kernel_shape=[size, size],
            strides=[stride, stride],
            pads=[size // 2] * 4,
            group=groups,
        )
        if activation == "relu":
            return self.node("Relu", y)
        if activation == "relu6":
            return self.node("Clip", y, self.constant(0.0), self.constant(6.0))
        if activation == "silu":
            return self.node("Mul", y, self.node("Sigmoid", y))
        return y

    def finish(self, **outputs: str) -> onnx.ModelProto:
        """Return the checked model with these outputs; their shapes are inferred."""
        for name, value in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        graph = helper.make_graph(
            self._nodes,
            "bench",
            self._inputs,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self._stored,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9
        )
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        onnx.checker.check_model(model)
        return model
