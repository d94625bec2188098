"""Predict how long an inference takes, to tell plans apart before any of them runs.

Where kernels were measured on such a board (edgeopt.times), products take what was measured of
them in their form, and all else what is left of the whole model's time. Where nothing was, products
take their multiplications over what a core does of them in a cycle, or the time that their weights
take from memory, whichever is longer (Williams et al., 2009: the roofline), and all else a pass
over its values: what counts then is the ratio of two plans.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto, TensorProto

from edgeopt.artifact import Model
from edgeopt.compress.cost import pushed_bytes
from edgeopt.model.graph import attribute, initializers, producers
from edgeopt.model.product import (
    Types,
    constants_of,
    inferred,
    list_products,
    shapes_of,
    types_of,
)
from edgeopt.model.sparse import SparseMatrix, find_sparse
from edgeopt.model.sums import CONVOLUTIONS, MATRICES, count_sums, weight_of
from edgeopt.target import Target
from edgeopt.times import Times

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


@dataclass(frozen=True, slots=True)
class Clock:
    """What times are predicted by: a device's pace, and what was measured there, if anything."""

    pace: Pace
    times: Times | None = None
    #: sha256 of the model that plans are for.
    model: str = ""


def predict_latency(model: Model, clock: Clock) -> float:
    """Predict the ns of one inference of a model with fixed shapes."""
    return sum(each.time for each in predict_nodes(model, clock))


@dataclass(frozen=True, slots=True)
class NodeTime:
    """What one node is predicted to take, in ns, and the stored tensors that it reads."""

    time: float
    tensors: tuple[str, ...]
    #: Operator and form of a product with a stored weight; "" of all else.
    kind: str = ""
    #: Digest of such a product, see list_products.
    key: str = ""
    #: ns by the roofline alone.
    bound: float = 0.0
    #: Bytes of the weights of such a product, as they are stored.
    stored: int = 0


def predict_weights(model: Model, clock: Clock, names: Sequence[str]) -> dict[str, float]:
    """Predict the ns of the nodes that read each of these weights, in whatever form it is.

    What a node takes counts for the first of the tensors that it reads.
    """
    read = ((node.tensors[0], node.time) for node in predict_nodes(model, clock) if node.tensors)
    return sum_by_weight(read, names)


def sum_by_weight(figures: Iterable[tuple[str, float]], names: Iterable[str]) -> dict[str, float]:
    """Add up figures of tensors by weight: forms name their parts after it."""
    sums = dict.fromkeys(names, 0.0)
    for name, figure in figures:
        owner = name
        while owner not in sums and "." in owner:
            owner = owner.rpartition(".")[0]
        if owner in sums:
            sums[owner] += figure
    return sums


def sum_changed(source: Iterable[NodeTime], plan: Iterable[NodeTime]) -> dict[str, float]:
    """Add up the ns of a plan's products by kind, of those that the model as it came lacks."""
    usual = {each.kind for each in source}
    sums: dict[str, float] = {}
    for each in plan:
        if each.key and each.kind not in usual:
            sums[each.kind] = sums.get(each.kind, 0.0) + each.time
    return sums


def predict_nodes(model: Model, clock: Clock) -> Iterator[NodeTime]:
    """Predict what each node takes that takes anything."""
    whole, pace, times = inferred(model, values=False), clock.pace, clock.times
    graph = whole.graph
    types = types_of(graph)
    shapes = shapes_of(types)
    keys = {each.output: each.key for each in list_products(whole)}
    work = _Work(
        types,
        constants_of(graph),
        producers(graph),
        initializers(graph),
        pushed_bytes(graph),
        find_sparse(graph),
    )
    streamed = sum(work.sizes.values()) > pace.cached
    for node in graph.node:
        output = next(name for name in node.output if name)
        if output in work.constant or output not in work.types:
            continue
        sums = count_sums(node, shapes)
        if sums:
            read = work.stored(node) / pace.memory if streamed else 0.0
            seconds = max(sums * work.share(node) / work.rate(node, pace), read)
        elif node.op_type not in _FREE:
            seconds = work.values(node) * _PASSES.get(node.op_type, 1.0) / pace.values
        else:
            continue
        bound, tensors = seconds * 1e9, tuple(work.tensors(node))
        key = keys.get(output, "")
        if key:
            kind = work.kind(node)
            time = bound if times is None else times.kernel(key, kind, bound, model=clock.model)
            yield NodeTime(time, tensors, kind, key, bound, work.stored(node))
        else:
            time = bound if times is None else times.others(clock.model, bound)
            yield NodeTime(time, tensors, bound=bound)


@dataclass(frozen=True, slots=True)
class _Work:
    """What each node of a graph has to do."""

    types: Types
    #: Tensors that are known before anything runs.
    constant: set[str]
    made_by: Mapping[str, NodeProto]
    weights: Mapping[str, TensorProto]
    #: Bytes of each as they are pushed.
    sizes: Mapping[str, int]
    sparse: Mapping[str, SparseMatrix]

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

    def kind(self, node: NodeProto) -> str:
        """Name the kernel of a product: operator, what makes it another one, and the form."""
        words = [node.op_type]
        weight = weight_of(node)
        shape = self._shape(weight)
        if node.op_type in CONVOLUTIONS and len(shape) > 1 and shape[1] == 1:
            words.append("depthwise")
        rows = math.prod(self._shape(node.output[0])[:-1])
        if node.op_type in MATRICES and rows < _FEWEST_ROWS:
            words.append("row")
        decoded = self.made_by.get(node.input[0])
        if decoded is not None and decoded.op_type == "DequantizeLinear":
            words.append("static")
        stored = [self.weights[name] for name in self._read(weight)]
        makers = list(self._makers(weight))
        matrix = self._sparse(weight)
        if matrix is not None:
            words.append(f"sparse of {matrix.width}")
        elif any(each.op_type == "Gather" for each in makers):
            words.append("levels")
        if matrix is not None:
            stored = [self.weights[matrix.blocks]]
        largest = max(stored, key=lambda each: math.prod(each.dims), default=None)
        kind = TensorProto.FLOAT if largest is None else largest.data_type
        in_blocks = any(attribute(each, "block_size", 0) for each in makers)
        if in_blocks and kind in (TensorProto.INT8, TensorProto.UINT8):
            # Codes of fewer bits are always in blocks.
            words.append("blocks")
        return " ".join([*words, TensorProto.DataType.Name(kind)])

    def share(self, node: NodeProto) -> float:
        """Return the share of a product's sums that are computed: not those with zeros."""
        matrix = self._sparse(weight_of(node)) if node.op_type in MATRICES else None
        return 1.0 if matrix is None else matrix.share

    def _sparse(self, weight: str) -> SparseMatrix | None:
        names = [each.output[0] for each in self._makers(weight)]
        return next((self.sparse[name] for name in names if name in self.sparse), None)

    def stored(self, node: NodeProto) -> int:
        """Return the bytes of the stored weights that a node reads, as they are stored."""
        return sum(self.sizes[name] for name in self.tensors(node))

    def tensors(self, node: NodeProto) -> Iterator[str]:
        """List the stored tensors that a node reads, through what decodes them."""
        for name in node.input:
            yield from self._read(name)

    def _read(self, tensor: str) -> Iterator[str]:
        """List the stored tensors that one tensor is decoded from, itself where it is one."""
        if tensor in self.weights:
            yield tensor
        for node in self._makers(tensor):
            yield from (name for name in node.input if name in self.weights)

    def _makers(self, tensor: str) -> Iterator[NodeProto]:
        """List the nodes that decode a tensor from stored ones alone."""
        waiting = [tensor] if tensor in self.constant else []
        while waiting:
            node = self.made_by.get(waiting.pop())
            if node is not None:
                yield node
                waiting.extend(node.input)

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
