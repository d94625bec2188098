"""Predict from the graph alone how long an inference takes, to tell plans apart before any runs.

Products take their multiplications over what a core does of them in a cycle, or the time that
their weights take from memory, whichever is longer (Williams et al., 2009: the roofline); all else
takes a pass over its values. How near a board comes to that differs from board to board, and a
measurement corrects it: what counts is the ratio of two plans.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from edgeopt.artifact import Model
from edgeopt.compress.cost import stored_bytes
from edgeopt.model.graph import initializers, producers
from edgeopt.model.product import Types, constants_of, inferred, shapes_of, types_of
from edgeopt.model.sums import MATRICES, count_sums, weight_of
from edgeopt.target import Target

#: What only renames, or is known before anything runs.
_FREE = (
    "Cast", "Constant", "DequantizeLinear", "Dropout", "Expand", "Flatten", "Gather", "Identity",
    "Reshape", "Shape", "Slice", "Squeeze", "Unsqueeze",
)  # fmt: skip
#: Passes over the values: exponentials are polynomials of about eight steps.
_PASSES = {
    "DynamicQuantizeLinear": 3.0,
    "Elu": 8.0,
    "Erf": 8.0,
    "Exp": 8.0,
    "Gelu": 8.0,
    "LayerNormalization": 4.0,
    "QuantizeLinear": 2.0,
    "Sigmoid": 8.0,
    "Softmax": 8.0,
    "Tanh": 8.0,
}
#: Where a target names no clock or bandwidth; both only scale what a measurement corrects.
_CLOCK, _BANDWIDTH = 1.5e9, 4e9
#: Threads beyond the first add this share: four took 3.3 times the work of one, at most.
_THREAD = 0.8
#: Rows from which a core that multiplies halves does.
_FEWEST_ROWS = 4


@dataclass(frozen=True, slots=True)
class Pace:
    """What a device's cores do in a second."""

    #: Multiplications with addition, by what is multiplied.
    single: float
    half: float
    integer: float
    #: Values that one pass goes over.
    values: float
    #: Bytes read, once they are more than the caches hold.
    memory: float
    cached: int


def pace_of(target: Target, *, threads: int) -> Pace:
    """Derive it from a target's figures, or from its features where it has none."""
    cluster = target.cluster[0]
    features = frozenset(target.isa.features)
    single, half, integer = _usual(target.isa.machine, features)
    single = cluster.fp32_per_cycle or single
    half = cluster.fp16_per_cycle or half if target.multiplies_halves else single
    integer = cluster.int8_per_cycle or integer
    second = (cluster.clock or _CLOCK) * (1 + _THREAD * (threads - 1))
    return Pace(
        single=single / 2 * second,
        half=half / 2 * second,
        integer=integer / 2 * second,
        # Loading, storing and one operation on a vector take its multiplier's time twice.
        values=single / 4 * second,
        # Copying reads and writes: reading alone takes about half.
        memory=2 * (target.memory.bandwidth or _BANDWIDTH),
        cached=target.memory.l3 or cluster.l2 or 0,
    )


def _usual(machine: str, features: frozenset[str]) -> tuple[float, float, float]:
    """Say what cores do a cycle: operations on float32, float16 and int8, two a multiplication.

    64-bit ARM as the Cortex-A72, with arithmetic in half the Cortex-A76, with int8 matrices the
    Cortex-A720 (the figures and sources of targets/rpi4.toml, rpi5.toml and orion-o6.toml); x86
    with two vector units, as all since Haswell.
    """
    if machine == "aarch64":
        single, half = (16.0, 32.0) if "asimdhp" in features else (8.0, 8.0)
        dot = 128.0 if "i8mm" in features else 64.0
        return single, half, dot if "asimddp" in features else 16.0
    if machine == "arm":
        return 4.0, 4.0, 8.0
    single = 64.0 if "avx512f" in features else 32.0
    return single, single, single * 4 if "avx512_vnni" in features else single * 2


def predict_latency(model: Model, pace: Pace) -> float:
    """Predict the ns of one inference of a model with fixed shapes."""
    return sum(each.time for each in predict_nodes(model, pace))


@dataclass(frozen=True, slots=True)
class NodeTime:
    """What one node is predicted to take, in ns, and the stored tensors that it reads."""

    time: float
    tensors: tuple[str, ...]


def predict_nodes(model: Model, pace: Pace) -> Iterator[NodeTime]:
    """Predict what each node takes that takes anything."""
    graph = inferred(model).graph
    types = types_of(graph)
    shapes = shapes_of(types)
    work = _Work(types, constants_of(graph), producers(graph), initializers(graph))
    streamed = sum(stored_bytes(each) for each in graph.initializer) > pace.cached
    for node in graph.node:
        if node.output[0] in work.constant or node.output[0] not in work.types:
            continue
        sums = count_sums(node, shapes)
        if sums:
            read = work.stored(node) / pace.memory if streamed else 0.0
            seconds = max(sums / work.rate(node, pace), read)
        elif node.op_type not in _FREE:
            seconds = work.values(node) * _PASSES.get(node.op_type, 1.0) / pace.values
        else:
            continue
        yield NodeTime(seconds * 1e9, tuple(work.tensors(node)))


@dataclass(frozen=True, slots=True)
class _Work:
    """What each node of a graph has to do."""

    types: Types
    #: Tensors that are known before anything runs.
    constant: set[str]
    made_by: Mapping[str, NodeProto]
    weights: Mapping[str, TensorProto]

    def rate(self, node: NodeProto, pace: Pace) -> float:
        """Return the multiplications in a second, by how the operands are stored."""
        if "Integer" in node.op_type or node.op_type.startswith("QLinear"):
            return pace.integer
        decoded = self.made_by.get(node.input[0])
        if decoded is not None and decoded.op_type == "DequantizeLinear":
            return pace.integer
        rows = math.prod(self._shape(node.output[0])[:-1])
        if node.op_type in MATRICES and rows < _FEWEST_ROWS:
            return pace.single
        return pace.half if self._is_half(weight_of(node)) else pace.single

    def stored(self, node: NodeProto) -> int:
        """Return the bytes of the stored weights that a node reads, as they are stored."""
        return sum(stored_bytes(self.weights[name]) for name in self.tensors(node))

    def tensors(self, node: NodeProto) -> Iterator[str]:
        """List the stored tensors that a node reads, through what decodes them."""
        waiting = [name for name in node.input if name in self.constant]
        while waiting:
            name = waiting.pop()
            if name in self.weights:
                yield name
            elif name in self.made_by:
                waiting.extend(self.made_by[name].input)

    def values(self, node: NodeProto) -> int:
        """Count the values that one pass goes over."""
        names = (*node.input, *node.output)
        return max(math.prod(self._shape(name)) for name in names if name in self.types)

    def _is_half(self, name: str) -> bool:
        """Tell whether a weight is stored in half, behind a cast."""
        cast = self.made_by.get(name)
        if cast is None or cast.op_type != "Cast":
            return False
        stored = self.weights.get(cast.input[0])
        return stored is not None and stored.data_type == TensorProto.FLOAT16

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.types[name][1] if name in self.types else ()
