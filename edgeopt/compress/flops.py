"""How many operations the products of a graph take, as a function of what is cut."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeopt.compress.groups import Group, Network
from edgeopt.compress.ties import is_depthwise
from edgeopt.model.graph import attribute
from edgeopt.model.sums import count_sums


@dataclass(frozen=True, slots=True)
class Product:
    """One MatMul, Gemm or Conv."""

    #: Two for each value that is summed.
    flops: int
    #: For each axis that it goes over: the share that one unit of each group takes of it.
    shares: Sequence[Mapping[str, float]]

    def left(self, removed: Mapping[str, int]) -> float:
        """Return the operations that are left when so many units of groups are cut."""
        found = float(self.flops)
        for axis in self.shares:
            found *= 1 - sum(share * removed.get(name, 0) for name, share in axis.items())
        return found


def find_products(network: Network, groups: Sequence[Group]) -> list[Product]:
    """List the products of a graph, of activations with one another too."""
    found = []
    for node in network.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        x, output = node.input[0], node.output[0]
        axis = len(network.shapes[x]) - 1
        if node.op_type == "Conv":
            axis = 1
        elif node.op_type == "Gemm":
            axis = attribute(node, "transA", 0) ^ 1
        axes = [(output, at) for at in range(len(network.shapes[output]))]
        if not (node.op_type == "Conv" and is_depthwise(node, network.shapes)):
            axes.append((x, axis))
        flops = 2 * count_sums(node, network.shapes)
        found.append(Product(flops, [_shares(groups, *each) for each in axes]))
    return found


def _shares(groups: Sequence[Group], tensor: str, axis: int) -> dict[str, float]:
    shares: defaultdict[str, float] = defaultdict(float)
    for group in groups:
        label = group.labels.get(tensor)
        if label is not None and label.axis == axis:
            own = int((label.units >= 0).sum())
            shares[group.name] += own / group.units / len(label.units)
    return dict(shares)


def count_flops(products: Sequence[Product], removed: Mapping[str, int]) -> int:
    """Return the operations of all products when so many units of groups are cut."""
    return int(np.rint(sum(each.left(removed) for each in products)))
