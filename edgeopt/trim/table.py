"""Leave out rows of the tables that token ids index, where nothing else depends on the ids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from edgeopt.artifact import Model
from edgeopt.errors import ModelError
from edgeopt.model.describe import facts
from edgeopt.model.graph import attribute, consumers, initializers, producers
from edgeopt.model.load import read_model

#: Operators that hand on ids as they are, in another form.
_VIEWS = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
#: What a table may be stored behind: it widens each value by itself.
_WIDENING = {"Cast", "Identity"}


def trim_tables(model: Model, ids: str, kept: Sequence[int], *, directory: Path) -> Model:
    """Write directory/trimmed.onnx, whose tables have only the rows kept, in that order.

    ids names the input. On renumbered ids the outputs are the same to the bit. Raises ModelError
    when a table or the ids are used for anything but to look rows up.
    """
    loaded = onnx.load(model.path)
    stored = initializers(loaded.graph)
    for name in find_tables(loaded.graph, ids, kept):
        rows = numpy_helper.to_array(stored[name])
        if max(kept) >= len(rows):
            raise _refusal(
                f"{name!r} has {len(rows)} rows, and the tokenizer ids up to {max(kept)}"
            )
        shorter = np.ascontiguousarray(rows[np.array(kept)])
        stored[name].CopyFrom(numpy_helper.from_array(shorter, name))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.resolve() / "trimmed.onnx"
    changed = _with_shapes(loaded)
    path.write_bytes(changed.SerializeToString(deterministic=True))
    return read_model(path, facts(changed), provenance=(*model.provenance, "trimmed"))


def find_tables(graph: GraphProto, ids: str, kept: Sequence[int]) -> tuple[str, ...]:
    """Return the stored tensors whose rows the ids look up, in the graph's order.

    A comparison of ids with a stored constant is allowed where its values keep their numbers, as
    that of a padding does.
    """
    reach = _Reach(graph, ids)
    outputs = {each.name for each in graph.output}
    if reach.views & outputs:
        raise _refusal("the model hands its token ids on as an output")
    gathers: list[NodeProto] = []
    for node, name in reach.readers():
        if _looks_up(node, name):
            gathers.append(node)
        elif not _compares_kept(graph, node, kept):
            raise _refusal(f"{_named(node)} computes with the token ids themselves")
    tables = tuple(dict.fromkeys(_stored_table(graph, node, gathers) for node in gathers))
    if not tables:
        raise _refusal(f"no table is looked up with the input {ids!r}")
    return tables


@dataclass(frozen=True, slots=True)
class _Reach:
    """Where the values of an input come, unchanged."""

    graph: GraphProto
    name: str

    @property
    def views(self) -> set[str]:
        """Every tensor that holds the input's values; nodes are in the order of their inputs."""
        found = {self.name}
        for node in self.graph.node:
            if _is_view(node, found):
                found.update(node.output)
        return found

    def readers(self) -> Iterator[tuple[NodeProto, str]]:
        """Yield the nodes that do anything else with these values, and the name they read."""
        views = self.views
        for node in self.graph.node:
            read = views.intersection(node.input)
            if read and not _is_view(node, views):
                yield node, min(read)


def _is_view(node: NodeProto, values: set[str]) -> bool:
    return node.op_type in _VIEWS and node.input[0] in values


def _looks_up(node: NodeProto, ids: str) -> bool:
    """Say whether a node reads whole rows by the ids, and does nothing else with them."""
    by_rows = node.op_type == "Gather" and attribute(node, "axis", 0) == 0
    return by_rows and list(node.input).index(ids) == 1


def _compares_kept(graph: GraphProto, node: NodeProto, kept: Sequence[int]) -> bool:
    """Say whether a node only asks which ids equal some that have the same number as before."""
    stored = initializers(graph)
    constants = [stored[name] for name in node.input if name in stored]
    if node.op_type != "Equal" or len(constants) != 1:
        return False
    values = numpy_helper.to_array(constants[0]).reshape(-1).tolist()
    return all(value in range(len(kept)) and kept[int(value)] == value for value in values)


def _stored_table(graph: GraphProto, gather: NodeProto, gathers: Sequence[NodeProto]) -> str:
    """Return the stored tensor that a lookup reads; nothing but such lookups may read it."""
    makers, readers = producers(graph), consumers(graph)
    outputs = {each.name for each in graph.output}
    name: str = gather.input[0]
    allowed = list(gathers)
    while True:
        others = [node for node in readers[name] if node not in allowed]
        if others or name in outputs:
            reader = _named(others[0]) if others else "an output"
            raise _refusal(f"the table {name!r} is tied: {reader} reads all of its rows")
        maker = makers.get(name)
        if maker is None or maker.op_type not in _WIDENING:
            break
        name, allowed = maker.input[0], [maker]
    if name not in initializers(graph):
        raise _refusal(f"the table {name!r} is computed, and not stored by rows")
    return name


def _with_shapes(model: ModelProto) -> ModelProto:
    """Infer all shapes anew: those of whole tables have changed."""
    model.graph.ClearField("value_info")
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _named(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]!r}"


def _refusal(why: str) -> ModelError:
    return ModelError(
        "the model's vocabulary cannot be trimmed", why=why, fix="leave trim_vocabulary out"
    )
