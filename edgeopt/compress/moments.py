"""What products are given on calibration samples, and how much their outputs matter.

Both come from torch: inputs X [T, K] of each product, one row per position, and gradients G [T, N]
of a random sum of the model's outputs, whose squares are on average those of the outputs' Jacobian:
the Fisher information where outputs are taken as means of a normal distribution. Kwon et al. 2022,
arXiv 2204.09656, take that of the labels' likelihood; on samples that a model was trained on this
is nearly zero, and needs labels. Rows whose gradient is zero reach no output (padding, say) and
are left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import GraphProto, ModelProto, NodeProto
from torch import Tensor

from edgeopt.compress.groups import Group
from edgeopt.model.oracle import Array
from edgeopt.model.torch_graph import TorchGraph
from edgeopt.model.torch_linear import product_rows, result_rows

Samples = Mapping[str, Array]
#: Samples that run at once: their activations and gradients are what takes memory.
CHUNK = 32
#: Samples whose gradients are taken at once where nothing but their rows counts.
_GRADED = 8
#: Rows of one product per chunk: a convolution has one per pixel, neighbours being much alike.
_ROWS = 8192


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over the rows of one product, in double precision."""

    #: X^T X [K, K].
    inputs: Array
    #: G^T G [N, N].
    gradients: Array

    def added(self, other: "Moments | None") -> "Moments":
        """Return the sums over the rows of both."""
        if other is None:
            return self
        return Moments(self.inputs + other.inputs, self.gradients + other.gradients)


def chunks(samples: Samples) -> Iterator[dict[str, Tensor]]:
    """Cut samples [S, *shape] into tensors of CHUNK samples at most."""
    count = len(next(iter(samples.values())))
    for start in range(0, count, CHUNK):
        yield {
            name: torch.from_numpy(np.ascontiguousarray(values[start : start + CHUNK]))
            for name, values in samples.items()
        }


def frontier(graph: GraphProto, changing: Iterable[str]) -> list[str]:
    """List the tensors that nodes read on the way from changing ones, and that do not change.

    Stored tensors and the graph's inputs are left out. Given them, all else can be computed anew.
    """
    changed, needed = set(changing), set[str]()
    for node in graph.node:
        if changed.intersection((*node.input, node.output[0])):
            changed.update(node.output)
            needed.update(name for name in node.input if name)
    given = {each.name for each in (*graph.initializer, *graph.input)}
    return sorted(needed - changed - given)


def products_of(groups: Sequence[Group]) -> dict[str, NodeProto]:
    """Map every weight that reads one of the groups to its node."""
    return {name: node for group in groups for name, node in group.readers.items()}


def collect_moments(
    model: ModelProto, products: Mapping[str, NodeProto], samples: Samples
) -> dict[str, Moments]:
    """Sum the moments of products over samples, inputs [S, *shape]."""
    module = TorchGraph(model)
    module.requires_grad_(False)
    inputs = [node.input[0] for node in products.values()]
    sums: dict[str, Moments] = {}
    for given, slopes in _differentiate(module, products, chunks(samples), inputs):
        for (name, node), x, every in zip(products.items(), given, slopes, strict=True):
            chosen = _choose(every)
            found = input_rows(module, node, x, chosen)
            sums[name] = Moments(_gram(found), _gram(every[chosen])).added(sums.get(name))
    return sums


def reaching_rows(
    module: TorchGraph, products: Mapping[str, NodeProto], samples: Samples
) -> dict[str, list[Tensor]]:
    """List the rows of each product that reach an output, for each chunk of samples [S, *shape].

    The module's parameters take no gradients.
    """
    rows: dict[str, list[Tensor]] = {name: [] for name in products}
    for feeds in chunks(samples):
        count = len(next(iter(feeds.values())))
        pieces = [
            {name: values[start : start + _GRADED] for name, values in feeds.items()}
            for start in range(0, count, _GRADED)
        ]
        reached: dict[str, list[Tensor]] = {name: [] for name in products}
        for _, slopes in _differentiate(module, products, pieces):
            for name, every in zip(products, slopes, strict=True):
                reached[name].append((every != 0).any(dim=1))
        for name, parts in reached.items():
            rows[name].append(_thin(torch.cat(parts)))
    return rows


def _differentiate(
    module: TorchGraph,
    products: Mapping[str, NodeProto],
    parts: Iterable[Mapping[str, Tensor]],
    wanted: Sequence[str] = (),
) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Yield wanted tensors [S, *shape] of each part, and gradients [T, N] of products' outputs."""
    generator = torch.Generator().manual_seed(0)
    made = [node.output[0] for node in products.values()]
    count = len(module.output_names)
    shapes: list[torch.Size] = []
    for feeds in parts:
        if not shapes:
            one = {name: values[:1] for name, values in feeds.items()}
            shapes = [each.shape[1:] for each in module.run_batch(one, wanted=made)]
        number = len(next(iter(feeds.values())))
        offsets = {
            name: torch.zeros((number, *shape)).requires_grad_()
            for name, shape in zip(made, shapes, strict=True)
        }
        found = module.run_batch(feeds, offsets, [*module.output_names, *wanted])
        _probe(found[:count], generator).backward()
        slopes = [
            _result_rows(module, node, offsets[name].grad)
            for name, node in zip(made, products.values(), strict=True)
        ]
        yield [each.detach() for each in found[count:]], slopes


def _probe(outputs: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    drawn = [torch.randn(each.shape, generator=generator) for each in outputs]
    return torch.stack([(a * b).sum() for a, b in zip(drawn, outputs, strict=True)]).sum()


def _choose(slopes: Tensor) -> Tensor:
    """Choose the rows that reach an output; of very many, evenly spread ones."""
    return _thin((slopes != 0).any(dim=1))


def _thin(reaching: Tensor) -> Tensor:
    """Return the places of truth; of very many, evenly spread ones."""
    places = torch.nonzero(reaching).flatten()
    return places[:: -(-len(places) // _ROWS)] if len(places) > _ROWS else places


def _gram(rows: Tensor) -> Array:
    found: Array = (rows.T @ rows).numpy().astype(np.float64)
    return found


def input_rows(module: TorchGraph, node: NodeProto, x: Tensor, chosen: Tensor) -> Tensor:
    """Return rows of what a product multiplies with its weight: of [S, *shape], [T, K]."""
    call = module.call_of(node.output[0])
    kernel = module.parameter(node.input[1]).shape[2:]
    found, start = [], 0
    for each in x:
        rows = product_rows(call, each, kernel)
        own = chosen[(chosen >= start) & (chosen < start + len(rows))] - start
        found.append(rows[own])
        start += len(rows)
    return torch.cat(found)


def _result_rows(module: TorchGraph, node: NodeProto, y: Tensor) -> Tensor:
    """Return what belongs to a product's output, [S, *shape] as [T, N], in the same order."""
    call = module.call_of(node.output[0])
    return torch.cat([result_rows(call, each) for each in y])
