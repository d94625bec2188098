"""Small ONNX graphs and a way to run what was compiled from them on this machine."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tvm
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tvm import relax

from edgeopt.compile.build import plan_module
from edgeopt.compile.cpu import Cpu, describe_cpu
from edgeopt.compile.import_onnx import import_model
from edgeopt.compile.in_process import open_machine
from edgeopt.compile.kernels.rule import Refusal
from edgeopt.compile.lower import lower_module
from edgeopt.store import digest_file
from edgeopt.target import Cluster, Isa, Software, Target

Array = np.ndarray[Any, Any]

FEATURES = {
    "x86_64": ("avx", "avx2", "f16c", "fma"),
    "aarch64": ("fp", "asimd"),
    "arm": ("neon", "vfpv4"),
}
CORES = {"x86_64": "x86-64-v3", "aarch64": "cortex-a72", "arm": "cortex-a7"}


def make_target(machine: str, *, static: bool = False, features: Sequence[str] = ()) -> Target:
    """Describe a device of one machine without a data file."""
    return Target(
        name=f"test-{machine}",
        title="a device of the tests",
        isa=Isa.model_validate({"machine": machine, "features": (*FEATURES[machine], *features)}),
        cluster=(Cluster(core=CORES[machine], count=2),),
        software=Software(linkage="static" if static else "dynamic"),
    )


class Graph:
    """An ONNX graph under construction."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.random = np.random.default_rng(seed)

    def input(self, name: str, shape: Sequence[int], kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, value: Array | np.generic) -> str:
        name = f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int) -> str:
        scale = 1.0 / np.sqrt(shape[0])
        return self.constant((self.random.standard_normal(shape) * scale).astype(np.float32))

    def add(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{operator.lower()}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def output(self, name: str, shape: Sequence[int], kind: int = TensorProto.FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def save(self, path: Path) -> Path:
        graph = helper.make_graph(self.nodes, "g", self.inputs, self.outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
        return path


def store_product(graph: Graph, x: str, weight: Array, method: str) -> str:
    """Multiply by a matrix stored by one method of compression, as compress writes it."""
    if method == "float32":
        return str(graph.add("MatMul", x, graph.constant(weight)))
    if method == "float16":
        half = graph.constant(weight.astype(np.float16))
        return str(graph.add("MatMul", x, graph.add("Cast", half, to=TensorProto.FLOAT)))
    scales = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    codes = np.clip(np.rint(weight / scales), -127, 127).astype(np.int8)
    if method == "int8-dynamic":
        u8, scale, zero = graph.add("DynamicQuantizeLinear", x, outputs=3)
        total = graph.add("MatMulInteger", u8, graph.constant(codes), zero)
        factor = graph.add("Mul", scale, graph.constant(scales))
        return str(graph.add("Mul", graph.add("Cast", total, to=TensorProto.FLOAT), factor))
    if method == "int8-static":
        limits = (graph.constant(np.float32(0.04)), graph.constant(np.int8(-7)))
        x = graph.add("DequantizeLinear", graph.add("QuantizeLinear", x, *limits), *limits)
    zeros = graph.constant(np.zeros(len(scales), np.int8))
    stored = (graph.constant(codes), graph.constant(scales), zeros)
    return str(graph.add("MatMul", x, graph.add("DequantizeLinear", *stored, axis=1)))


def save_encoder(path: Path, *, method: str = "float32", seed: int = 0, tokens: int = 12) -> Path:
    """Write a one-layer encoder: rows of a table, attention with a mask, GELU, pooling, head."""
    width, heads, rows = 64, 4, 2000
    graph = Graph(seed)
    ids = graph.input("input_ids", (1, tokens), TensorProto.INT64)
    mask = graph.input("attention_mask", (1, tokens), TensorProto.INT64)
    table = graph.random.standard_normal((rows, width)).astype(np.float32)
    x = graph.add("Gather", _table(graph, table, method), ids, axis=0)
    if method == "float16":
        x = graph.add("Cast", x, to=TensorProto.FLOAT)
    x = graph.add("Add", x, graph.weight(1, tokens, width))
    x = _norm(graph, x, width)
    shape = graph.constant(np.array([1, tokens, heads, width // heads]))
    split = [graph.add("Reshape", _linear(graph, x, width, width, method), shape) for _ in range(3)]
    query, value = (graph.add("Transpose", split[i], perm=[0, 2, 1, 3]) for i in (0, 2))
    key = graph.add("Transpose", split[1], perm=[0, 2, 3, 1])
    scaled = graph.add("Mul", query, graph.constant(np.float32((width // heads) ** -0.5)))
    wide = graph.add("Cast", mask, to=TensorProto.FLOAT)
    flat = graph.constant(np.array([1, 1, 1, tokens]))
    hidden = graph.add("Sub", graph.constant(np.float32(1)), graph.add("Reshape", wide, flat))
    hidden = graph.add("Mul", hidden, graph.constant(np.float32(-1e9)))
    scores = graph.add("Softmax", graph.add("Add", graph.add("MatMul", scaled, key), hidden))
    mixed = graph.add("Transpose", graph.add("MatMul", scores, value), perm=[0, 2, 1, 3])
    mixed = graph.add("Reshape", mixed, graph.constant(np.array([1, tokens, width])))
    x = _norm(graph, graph.add("Add", x, _linear(graph, mixed, width, width, method)), width)
    inner = _gelu(graph, _linear(graph, x, width, 4 * width, method))
    x = _norm(graph, graph.add("Add", x, _linear(graph, inner, 4 * width, width, method)), width)
    column = graph.add("Reshape", wide, graph.constant(np.array([1, tokens, 1])))
    pooled = graph.add(
        "ReduceSum", graph.add("Mul", x, column), graph.constant(np.array([1])), keepdims=0
    )
    head = graph.add("Gemm", pooled, graph.weight(5, width), graph.weight(5), transB=1)
    graph.output(head, (1, 5))
    return graph.save(path)


def _table(graph: Graph, table: Array, method: str) -> str:
    return graph.constant(table.astype(np.float16) if method == "float16" else table)


def _linear(graph: Graph, x: str, rows: int, columns: int, method: str) -> str:
    weight = graph.random.standard_normal((rows, columns)).astype(np.float32) / np.sqrt(rows)
    product = store_product(graph, x, weight.astype(np.float32), method)
    return str(graph.add("Add", product, graph.weight(columns)))


def _norm(graph: Graph, x: str, width: int) -> str:
    gain = graph.constant(np.ones(width, np.float32))
    return str(graph.add("LayerNormalization", x, gain, graph.weight(width), epsilon=1e-12))


def _gelu(graph: Graph, x: str) -> str:
    scaled = graph.add("Div", x, graph.constant(np.float32(np.sqrt(2))))
    whole = graph.add("Add", graph.add("Erf", scaled), graph.constant(np.float32(1)))
    return str(graph.add("Mul", graph.add("Mul", x, whole), graph.constant(np.float32(0.5))))


def draw_tokens(seed: int, tokens: int = 12) -> dict[str, Array]:
    """Draw row numbers and a mask that hides the last third."""
    random = np.random.default_rng(seed)
    mask = np.ones((1, tokens), np.int64)
    mask[:, tokens * 2 // 3 :] = 0
    return {"input_ids": random.integers(0, 2000, (1, tokens)), "attention_mask": mask}


def lower_natively(path: Path, cpu: Cpu | None = None) -> tuple[tvm.IRModule, tuple[Refusal, ...]]:
    """Compile a graph for this machine up to scheduled code; list what no rule took."""
    lowered = lower_module(import_model(path), cpu or describe_cpu(make_target("x86_64")))
    return lowered.module, lowered.refusals


@lru_cache(maxsize=1)
def _open(path: Path, _sha256: str, cpu: Cpu) -> tuple[relax.VirtualMachine, list[str]]:
    module, refusals = lower_natively(path, cpu)
    assert refusals == ()
    names = [variable.name_hint for variable in module.functions]
    return open_machine(plan_module(module, cpu), cpu), names


def run_lowered(path: Path, feeds: Mapping[str, Array], cpu: Cpu) -> tuple[list[Array], list[str]]:
    """Run what is compiled for a CPU, once for several runs; return its functions' names too.

    Every function must have been scheduled.
    """
    machine, names = _open(path, digest_file(path), cpu)
    result = machine["main"](*(tvm.runtime.tensor(value) for value in feeds.values()))
    outputs = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    return [output.numpy() for output in outputs], names


def run_natively(path: Path, feeds: Mapping[str, Array]) -> list[Array]:
    """Run a graph on this machine, as run_lowered does."""
    return run_lowered(path, feeds, describe_cpu(make_target("x86_64")))[0]


def distance(found: Array, wanted: Array) -> float:
    """Return the largest difference, relative to the largest value."""
    scale = float(np.abs(wanted.astype(np.float64)).max()) or 1.0
    return float(np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max()) / scale
