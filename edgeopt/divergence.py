"""Find the first node whose outputs on the board are not those of onnxruntime on the host."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.artifact import Bundle, Model
from edgeopt.errors import ParityBroken
from edgeopt.scratch import scratch
from edgeopt.trial import Seat, read_samples, run_once
from edgeopt.verify import compare_outputs

Arrays = Mapping[str, NDArray[Any]]
#: Compiles a model into a folder for the board of the seat.
Build = Callable[[Model, Path], Bundle]


@dataclass(frozen=True, slots=True)
class Search:
    """A model that differs on some samples, and by how much its outputs may differ."""

    seat: Seat
    model: Model
    #: Samples of each input, [S, *shape].
    feeds: Arrays
    #: max |board - host| / max |host|.
    tolerance: float
    build: Build


def locate_divergence(
    seat: Seat, model: Model, *, sample: int | None, tolerance: float, build: Build
) -> str:
    """Say which node is the first whose outputs differ on a sample, or any, in one sentence.

    The model is cut after n nodes, compiled and run on the board; n is found by halving, which
    takes log2(nodes) runs. A cut shows only what later nodes read: what is compiled together
    before it still is.
    """
    from edgeopt.model.cut import read_nodes

    drawn, _ = read_samples(seat.samples)
    rows = slice(None) if sample is None else slice(sample, sample + 1)
    feeds = {name: values[rows] for name, values in drawn.items()}
    search = Search(seat, model, feeds, tolerance, build)
    nodes = read_nodes(model)
    count = bisect_left(range(1, len(nodes) + 1), 1, key=lambda n: bool(_difference(search, n))) + 1
    if count > len(nodes):
        return "the difference did not repeat: no part of the model shows it"
    node = nodes[count - 1]
    return (
        f"first at node {count} of {len(nodes)}, {node.op_type} '{node.name or node.output[0]}': "
        f"{_difference(search, count)}"
    )


def _difference(search: Search, count: int) -> str:
    """Run the first nodes on the board and describe where they differ; empty where they agree."""
    from edgeopt.model.cut import cut_model
    from edgeopt.model.oracle import run_samples

    search.seat.run.begin(f"locate: {count} nodes")
    with scratch() as folder:
        one = {name: values[0] for name, values in search.feeds.items()}
        cut = cut_model(search.model, count, feeds=one, directory=folder)
        if cut is None:
            return ""
        feeds = {each.name: search.feeds[each.name] for each in cut.inputs}
        expected = run_samples(cut, feeds)
        bundle = search.build(cut, folder / "bundle")
        found = run_once(search.seat, bundle, feeds, folder)
        return _compare(found, expected, search.tolerance, [each.name for each in cut.outputs])


def _compare(
    found: list[NDArray[Any]], expected: list[NDArray[Any]], tolerance: float, names: list[str]
) -> str:
    for board, host, name in zip(found, expected, names, strict=True):
        # Inside a model a value may well be no number, as long as it is none on both sides.
        if np.array_equal(board, host, equal_nan=host.dtype.kind == "f"):
            continue
        try:
            worst = compare_outputs([board], [host], names=[name]).worst
        except ParityBroken as error:
            return error.why
        # Written so that a NaN counts as a difference.
        if not worst.max_rel <= tolerance:
            return f"{worst}; relative difference {worst.max_rel:.2g}"
    return ""
