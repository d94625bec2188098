"""Fit the weights that read what is left, so that products keep their results.

By least squares, product after product in the graph's order, each from what the cut model before
it gives: min |X' W' - X W|^2 over the rows of all samples, X' and X being the inputs of the cut
and of the whole model (the mask tuning of Kwon et al. 2022, arXiv 2204.09656, with the whole matrix
free). A ridge holds W' near W where the samples say nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor

from edgeopt.compress.cuts import masks_of
from edgeopt.compress.factors import Doubles
from edgeopt.compress.groups import Group, summed_axis
from edgeopt.compress.matrices import as_matrix, from_matrix
from edgeopt.compress.moments import Samples, chunks, input_rows, products_of, reaching_rows
from edgeopt.compress.surgeon import damped
from edgeopt.cut import Cut
from edgeopt.model.graph import initializers
from edgeopt.model.oracle import Array
from edgeopt.model.torch_graph import TorchGraph

#: Samples that are used at most.
MOST_SAMPLES = 256


def refit_readers(
    model: ModelProto,
    cuts: Sequence[Cut],
    groups: Mapping[str, Group],
    samples: Samples,
) -> None:
    """Change the weights of a model that read the groups of cuts: zero for what is left out.

    The model is the whole one, whose graph stays as it is; samples are inputs [S, *shape].
    """
    given = {name: values[:MOST_SAMPLES] for name, values in samples.items()}
    products = ordered_products(model, products_of([groups[each.group] for each in cuts]))
    module = TorchGraph(model)
    module.requires_grad_(False)
    rows = reaching_rows(module, products, given)
    wanted = results_of(module, products, given, rows)
    masks = masks_of(cuts, groups)
    stored = initializers(model.graph)
    for name, node in products.items():
        # Along its other axis lie the units that it makes.
        kept = masks[name][summed_axis(node)]
        kept = np.repeat(kept, int(np.prod(stored[name].dims[2:])))
        before = as_matrix(node, numpy_helper.to_array(stored[name]))
        # Of a branch that goes as a whole nothing is left to be fitted.
        fitted = np.zeros_like(before)
        if kept.any():
            inputs = inputs_of(module, node, given, rows[name])
            sums = sum_products(zip(inputs, wanted.pop(name), strict=True), kept, before.shape[1])
            fitted = fit_rows(sums, before, kept)
        values = from_matrix(node, fitted, tuple(stored[name].dims))
        module.parameter(name).copy_(torch.from_numpy(values))
        stored[name].CopyFrom(numpy_helper.from_array(values, name))


def ordered_products(model: ModelProto, products: Mapping[str, NodeProto]) -> dict[str, NodeProto]:
    """Return products in the order in which the graph computes them."""
    places = {node.output[0]: place for place, node in enumerate(model.graph.node)}
    ordered = sorted(products.items(), key=lambda each: places[each[1].output[0]])
    return dict(ordered)


def results_of(
    module: TorchGraph,
    products: Mapping[str, NodeProto],
    samples: Samples,
    rows: Mapping[str, Sequence[Tensor]],
) -> dict[str, list[Tensor]]:
    """Return what products of the whole model give, X W [T, N] per chunk."""
    found: dict[str, list[Tensor]] = {name: [] for name in products}
    inputs = [node.input[0] for node in products.values()]
    for place, feeds in enumerate(chunks(samples)):
        given = module.run_batch(feeds, wanted=inputs)
        for (name, node), x in zip(products.items(), given, strict=True):
            matrix = as_matrix(node, module.parameter(name).numpy())
            found[name].append(
                input_rows(module, node, x, rows[name][place]) @ torch.from_numpy(matrix)
            )
    return found


def inputs_of(
    module: TorchGraph, node: NodeProto, samples: Samples, rows: Sequence[Tensor]
) -> Iterator[Tensor]:
    """Yield what a product is given now, X' [T, K] per chunk."""
    for feeds, chosen in zip(chunks(samples), rows, strict=True):
        yield input_rows(module, node, module.run_batch(feeds, wanted=[node.input[0]])[0], chosen)


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over the rows of all chunks, of float32 products in double precision."""

    #: X'^T X' of the inputs that count [kept, kept].
    squares: Doubles
    #: X'^T X W [kept, N].
    crossed: Doubles


def sum_products(pairs: Iterable[tuple[Tensor, Tensor]], kept: Array, width: int) -> Sums:
    """Sum over pairs of inputs X' [T, K] and results X W [T, width], one pair at a time.

    kept [K]: which inputs count.
    """
    places = torch.from_numpy(np.flatnonzero(kept))
    squares: Doubles = np.zeros((len(places), len(places)))
    crossed: Doubles = np.zeros((len(places), width))
    for x, y in pairs:
        left = x if len(places) == len(kept) else x[:, places]
        squares += (left.T @ left).numpy()
        crossed += (left.T @ y).numpy()
    return Sums(squares, crossed)


def fit_rows(sums: Sums, before: Array, kept: Array) -> Array:
    """Solve for the rows of W [K, N] that are kept."""
    held = damped(sums.squares)
    ridge = held[0, 0] - sums.squares[0, 0]
    fitted = np.zeros_like(before)
    fitted[kept] = np.linalg.solve(held, sums.crossed + ridge * before[kept])
    return fitted
