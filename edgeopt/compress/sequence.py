"""Fit and round layer after layer, so that each makes up for what those before it have lost.

GPTQ rounds a matrix W for the inputs X of the model as it was. What a layer is given once those
before it are rounded is X', so first W' is fitted, min |X' W' - X W|^2, as after pruning, and then
it is rounded for X'. (Of two steps, the exact answer: Zhang et al. 2025, Qronos, arXiv 2505.11695,
Theorem 3.1, of which this takes the first step for the whole matrix at once.)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from edgeopt.artifact import Choice, Plan
from edgeopt.compress.learned import Learned, learn
from edgeopt.compress.matrices import as_matrix, from_matrix
from edgeopt.compress.moments import Samples, chunks, frontier, input_rows, reaching_rows
from edgeopt.compress.refit import fit_rows, ordered_products, sum_products
from edgeopt.model.graph import Weight, attribute, consumers, initializers
from edgeopt.model.oracle import Array, open_session
from edgeopt.model.torch_graph import TorchGraph
from edgeopt.scratch import scratch

#: Samples that are used at most.
MOST_SAMPLES = 512

Wanted: TypeAlias = Sequence[tuple[Weight, Choice]]
#: Rewrites the weights of a model by a plan and what was learned.
Rewrite: TypeAlias = Callable[[ModelProto, Plan, Learned], ModelProto]


def fit_in_turn(model: ModelProto, wanted: Wanted, samples: Samples, rewrite: Rewrite) -> Learned:
    """Change the weights of a model that are reconstructed, and say what their layers are given.

    Rounding them by what is returned gives what the later ones were fitted to. samples are inputs
    [S, *shape]. Weights that several nodes read are rounded as they were.
    """
    products = _products(model, wanted)
    choices = {weight.name: (weight, choice) for weight, choice in wanted}
    learned = learn(model, [each for each in wanted if each[0].name not in products], samples)
    if not products:
        return learned
    given = {name: values[:MOST_SAMPLES] for name, values in samples.items()}
    whole, changed = (_Stream(TorchGraph(model), given) for _ in range(2))
    rows = reaching_rows(whole.module, products, given)
    stored = initializers(model.graph)
    hessians, factors = dict(learned.hessians), learned.factors
    for weight, choice in wanted:
        if weight.name not in products and weight.role in ("table", "matmul", "gemm"):
            changed.put(weight.name, _decode(model, weight, choice, learned, rewrite))
    for place, (name, node) in enumerate(products.items()):
        later = [each.output[0] for each in list(products.values())[place:]]
        border = frontier(model.graph, later)
        before = as_matrix(node, numpy_helper.to_array(stored[name]))
        matrix = torch.from_numpy(as_matrix(node, whole.module.parameter(name).numpy()))
        pairs = (
            (now, x @ matrix)
            for x, now in zip(
                whole.inputs(node, border, rows[name]),
                changed.inputs(node, border, rows[name]),
                strict=True,
            )
        )
        every = np.ones(len(before), bool)
        sums = sum_products(pairs, every, before.shape[1])
        values = from_matrix(node, fit_rows(sums, before, every), tuple(stored[name].dims))
        stored[name].CopyFrom(numpy_helper.from_array(values, name))
        hessians[name] = sums.squares
        factors.keep(hessians[name])
        own = Learned({name: hessians[name]}, {}, factors)
        changed.put(name, _decode(model, *choices[name], own, rewrite))
    return Learned(hessians, learned.reads, factors)


class _Stream:
    """A module whose products are gone through in order, and what the later ones need of others."""

    def __init__(self, module: TorchGraph, samples: Samples) -> None:
        """Begin with inputs [S, *shape]; the module's parameters take no gradients from then on."""
        self.module = module
        module.requires_grad_(False)
        self._samples = samples
        self._known = [dict(each) for each in chunks(samples)]

    def inputs(
        self, node: NodeProto, border: Sequence[str], rows: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """Yield rows of what a product is given, [T, K] per chunk.

        border: the frontier of this product and all later ones, which is what stays known.
        """
        for place, chosen in enumerate(rows):
            known = _advance(self.module, self._samples, border, self._known[place])
            self._known[place] = known
            yield input_rows(self.module, node, known[node.input[0]], chosen)

    def put(self, name: str, values: Array) -> None:
        """Change a weight: what is computed from now on reads the other values."""
        self.module.parameter(name).copy_(torch.from_numpy(values))


def _advance(
    module: TorchGraph, inputs: Iterable[str], wanted: Sequence[str], known: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Compute tensors of a chunk from those that are known; inputs stay known, others need not."""
    missing = [name for name in wanted if name not in known]
    found = dict(zip(missing, module.run_batch(known, wanted=missing), strict=True))
    return {name: found[name] if name in found else known[name] for name in (*inputs, *wanted)}


def _products(model: ModelProto, wanted: Wanted) -> dict[str, NodeProto]:
    """Map the weights that are fitted to the node that reads them, in the graph's order."""
    readers = consumers(model.graph)
    return ordered_products(
        model,
        {
            weight.name: readers[weight.name][0]
            for weight, choice in wanted
            if choice.learns and weight.role in ("matmul", "gemm")
            if len(readers[weight.name]) == 1
            and not attribute(readers[weight.name][0], "transA", 0)
        },
    )


def _decode(
    model: ModelProto, weight: Weight, choice: Choice, learned: Learned, rewrite: Rewrite
) -> Array:
    """Return what a weight becomes: a model of its own reads all rows of its form."""
    turned = weight.role == "gemm" and weight.axis == 0
    kind = TensorProto.FLOAT
    node = helper.make_node("MatMul", ["x", weight.name], ["y"])
    if weight.role == "table":
        kind = TensorProto.INT64
        node = helper.make_node("Gather", [weight.name, "x"], ["y"])
    elif weight.role == "gemm":
        node = helper.make_node("Gemm", ["x", weight.name], ["y"], transB=int(turned))
    count = weight.shape[int(turned)]
    # Of a table all rows by their numbers: an identity would have the square of its rows.
    feed: Array = np.arange(count) if weight.role == "table" else np.eye(count, dtype=np.float32)
    graph = helper.make_graph(
        [node],
        "weight",
        [helper.make_tensor_value_info("x", kind, feed.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [initializers(model.graph)[weight.name]],
    )
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    made = rewrite(part, Plan(name="weight", choices=(choice,)), learned)
    with scratch() as folder:
        path = folder / "weight.onnx"
        onnx.save_model(made, path)
        found: Array = open_session(path).run(None, {"x": feed})[0]
    return np.ascontiguousarray(found.T if turned else found)
