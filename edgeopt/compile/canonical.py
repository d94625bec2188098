"""The text of a loop-level function without what only its model gave it: names and places."""

import json
from typing import Any, TypeAlias

import tvm
from tvm import tirx

_Node: TypeAlias = dict[str, Any]

#: Where TVM's JSON keeps a name that means nothing to the code.
_NAMES = {"ir.Var": "name", "s_tir.SBlock": "name_hint"}
#: Fields that hold a number itself and not the number of a node.
_NUMBERS = frozenset({"kind", "iter_type", "data_alignment", "offset_factor", "ndim"})


def canonical_text(function: tirx.PrimFunc) -> str:
    """Write a function so that the same computation has the same text in any model.

    Names would come back in the messages of the code's checks, and spans say which line of which
    file a statement was read from.
    """
    graph = json.loads(tvm.ir.save_json(function))
    nodes: list[_Node] = graph["nodes"]
    _forget_places(nodes)
    _number_names(nodes)
    return json.dumps(graph, separators=(",", ":"), sort_keys=True)


def read_function(text: str) -> tirx.PrimFunc:
    """Read the function that canonical_text wrote."""
    return tvm.ir.load_json(text)


def _forget_places(nodes: list[_Node]) -> None:
    nothing = next((i for i, node in enumerate(nodes) if node["type"] == "None"), len(nodes))
    if nothing == len(nodes):
        nodes.append({"type": "None"})
    for node in nodes:
        if node["type"] == "ir.Span":
            node.clear()
            node.update(type="None")
        elif node["type"] == "ir.SourceName":
            node["data"] = ""
        elif isinstance(node.get("data"), dict) and "span" in node["data"]:
            node["data"]["span"] = nothing


def _number_names(nodes: list[_Node]) -> None:
    """Name variables and blocks by their order; empty the texts that only named them."""
    named: set[int] = set()
    made: list[_Node] = []
    for node in nodes:
        field = _NAMES.get(node["type"])
        if field is not None:
            named.add(node["data"][field])
            node["data"][field] = len(nodes) + len(made)
            made.append({"type": "ffi.String", "data": f"v{len(made)}"})
    for index in named - _references(nodes):
        nodes[index]["data"] = ""
    nodes.extend(made)


def _references(nodes: list[_Node]) -> set[int]:
    """List the numbers of all nodes that others refer to."""
    found: set[int] = set()
    for node in nodes:
        data = node.get("data")
        if isinstance(data, list):
            found.update(data)
        elif isinstance(data, dict):
            found.update(
                value
                for field, value in data.items()
                if field not in _NUMBERS and type(value) is int
            )
    return found
