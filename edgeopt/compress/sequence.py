"""Fit and round layer after layer, so that each makes up for what those before it have lost.

GPTQ rounds a matrix W for the inputs X of the model as it was. What a layer is given once those
before it are rounded is X', so first W' is fitted, min |X' W' - X W|^2, as after pruning, and then
it is rounded for X'. (Of two steps, the exact answer: Zhang et al. 2025, Qronos, arXiv 2505.11695,
Theorem 3.1, of which this takes the first step for the whole matrix at once.)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from edgeopt.artifact import Choice, Plan
from edgeopt.compress.factors import Factors
from edgeopt.compress.learned import Learned, learn
from edgeopt.compress.matrices import as_matrix, from_matrix
from edgeopt.compress.moments import Samples, chunks, collect_moments, frontier, input_rows
from edgeopt.compress.refit import fit_rows, ordered_products, results_of
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
    rows = collect_moments(model, products, given).rows
    module = TorchGraph(model)
    module.requires_grad_(False)
    results = results_of(module, products, given, rows)
    stored = initializers(model.graph)
    hessians = dict(learned.hessians)
    for weight, choice in wanted:
        if weight.name not in products and weight.role in ("table", "matmul", "gemm"):
            _put(module, weight.name, _decode(model, weight, choice, learned, rewrite))
    known = [dict(each) for each in chunks(given)]
    for place, (name, node) in enumerate(products.items()):
        later = [each.output[0] for each in list(products.values())[place:]]
        known = [_advance(module, given, frontier(model.graph, later), each) for each in known]
        inputs = [
            input_rows(module, node, each[node.input[0]], chosen)
            for each, chosen in zip(known, rows[name], strict=True)
        ]
        before = as_matrix(node, numpy_helper.to_array(stored[name]))
        fitted = fit_rows(inputs, results[name], before, np.ones(len(before), bool))
        values = from_matrix(node, fitted, tuple(stored[name].dims))
        stored[name].CopyFrom(numpy_helper.from_array(values, name))
        hessians[name] = _gram(inputs)
        own = Learned({name: hessians[name]}, {})
        _put(module, name, _decode(model, *choices[name], own, rewrite))
    return Learned(hessians, learned.reads, Factors(hessians.values()))


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


def _gram(inputs: Sequence[Tensor]) -> Array:
    total: Array = np.sum([(each.T @ each).numpy().astype(np.float64) for each in inputs], axis=0)
    return total


def _put(module: TorchGraph, name: str, values: Array) -> None:
    module.parameter(name).copy_(torch.from_numpy(values))


def _decode(
    model: ModelProto, weight: Weight, choice: Choice, learned: Learned, rewrite: Rewrite
) -> Array:
    """Return what a weight becomes: a model of its own reads all rows of its form."""
    turned = weight.role == "gemm" and weight.axis == 0
    kind = TensorProto.FLOAT
    feed: Array = np.eye(weight.shape[int(turned)], dtype=np.float32)
    node = helper.make_node("MatMul", ["x", weight.name], ["y"])
    if weight.role == "table":
        kind, feed = TensorProto.INT64, np.arange(weight.shape[0])
        node = helper.make_node("Gather", [weight.name, "x"], ["y"])
    elif weight.role == "gemm":
        node = helper.make_node("Gemm", ["x", weight.name], ["y"], transB=int(turned))
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
