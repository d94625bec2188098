"""Plans: made from a name, written as data, replayed to the same bytes."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import assert_never

import numpy as np
import onnx
from onnx import numpy_helper

from edgeopt.artifact import Choice, Method, Model, Plan, Range
from edgeopt.compress.calibrate import calibrate
from edgeopt.compress.dynamic import quantize_dynamic
from edgeopt.compress.edit import Edit
from edgeopt.compress.half import store_half
from edgeopt.compress.rows import store_rows
from edgeopt.compress.static import quantize_static
from edgeopt.compress.weights import store_weights
from edgeopt.errors import ConfigError
from edgeopt.model.graph import Weight, attribute, consumers, initializers, weights
from edgeopt.model.oracle import Array
from edgeopt.store import digest_file

#: Smaller tensors (biases, norms, classifier heads) stay float32: their bytes do not matter.
SMALLEST = 1024

#: What each method means for a weight's role; a role that is absent gets what the method says.
_BY_ROLE: Mapping[Method, Mapping[str, Method]] = {
    "float32": {},
    "float16": {},
    "int8-rows": {
        "matmul": "float16",
        "gemm": "float16",
        "conv": "float16",
        "recurrent": "float16",
    },
    "int8-weights": {"table": "int8-rows"},
    # There is no integer convolution with dynamic ranges that the compiler reads.
    "int8-dynamic": {"table": "int8-rows", "conv": "int8-weights", "recurrent": "int8-weights"},
    # Nor is there one of a recurrent layer, in either form.
    "int8-static": {"table": "int8-rows", "recurrent": "int8-weights"},
}


def make_plan(
    model: Model,
    method: Method,
    *,
    samples: Mapping[str, Array] | None = None,
    directory: Path,
) -> Plan:
    """Choose for every weight what a method means for it; the plan has the method's name.

    int8-static needs samples, inputs as [S, *shape], and raises ConfigError without them.
    """
    loaded = onnx.load(model.path)
    found = [each for each in weights(loaded.graph) if each.size >= SMALLEST]
    choices = tuple(
        Choice(weight=each.name, method=_choose(loaded.graph, each, method)) for each in found
    )
    ranges: tuple[Range, ...] = ()
    if method == "int8-static":
        static = {each.weight for each in choices if each.method == "int8-static"}
        tensors = _activations(loaded.graph, [each for each in found if each.name in static])
        directory.mkdir(parents=True, exist_ok=True)
        ranges = calibrate(loaded, tensors, samples or {}, directory) if tensors else ()
    return Plan(name=method, choices=choices, ranges=ranges)


def _choose(graph: onnx.GraphProto, weight: Weight, method: Method) -> Method:
    """Return what a method means for one weight, given what its form can hold."""
    chosen = _BY_ROLE[method].get(weight.role, method)
    if chosen in ("int8-dynamic", "int8-static") and not _plain(graph, weight):
        return "int8-weights"
    if chosen == "float16":
        values = numpy_helper.to_array(initializers(graph)[weight.name])
        return "float16" if np.abs(values).max() <= np.finfo(np.float16).max else "float32"
    return chosen


def _plain(graph: onnx.GraphProto, weight: Weight) -> bool:
    """Say whether all readers are plain products: a Gemm may also scale or transpose."""
    for node in consumers(graph)[weight.name]:
        scaled = any(each.name in ("alpha", "beta") and each.f != 1.0 for each in node.attribute)
        if node.op_type == "Gemm" and (scaled or attribute(node, "transA", 0)):
            return False
    return True


def _activations(graph: onnx.GraphProto, found: Sequence[Weight]) -> list[str]:
    """List the tensors that the readers of these weights multiply them with, once each."""
    readers = consumers(graph)
    return list(dict.fromkeys(node.input[0] for each in found for node in readers[each.name]))


def apply_plan(model: Model, plan: Plan, *, directory: Path) -> Model:
    """Write directory/compressed.onnx: standard ONNX with the names and shapes of the model.

    Raises ConfigError for a plan that was made for another model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.resolve() / "compressed.onnx"
    if all(each.method == "float32" for each in plan.choices):
        shutil.copyfile(model.path, path)
        return _made(model, path, plan)
    loaded = onnx.load(model.path)
    found = {each.name: each for each in weights(loaded.graph)}
    edit = Edit(loaded)
    for choice in plan.choices:
        if choice.weight not in found:
            raise _foreign(plan, f"the model has no weight {choice.weight!r}")
        _refuse_foreign(edit, found[choice.weight], choice.method, plan)
        _apply(edit, found[choice.weight], choice.method, plan)
    path.write_bytes(edit.finish().SerializeToString(deterministic=True))
    return _made(model, path, plan)


def _made(model: Model, path: Path, plan: Plan) -> Model:
    """Return the facts of a compressed model: those of the original, in another file."""
    return model.model_copy(
        update={
            "path": path,
            "sha256": digest_file(path),
            "provenance": (*model.provenance, plan.name),
        }
    )


def _refuse_foreign(edit: Edit, weight: Weight, method: Method, plan: Plan) -> None:
    """Refuse a choice that this weight has no form for."""
    if method in ("float32", "float16"):
        return
    if (weight.role == "table") != (method == "int8-rows"):
        raise _foreign(plan, f"{method} is no form of {weight.name!r}, a {weight.role} weight")
    if method == "int8-static":
        known = {each.tensor for each in plan.ranges}
        for node in edit.readers(weight.name):
            if node.input[0] not in known:
                raise _foreign(plan, f"it has no range for {node.input[0]!r}")


def _apply(edit: Edit, weight: Weight, method: Method, plan: Plan) -> None:
    """Rewrite one weight in one form."""
    match method:
        case "float32":
            return
        case "float16":
            store_half(edit, weight)
        case "int8-rows":
            store_rows(edit, weight)
        case "int8-weights":
            store_weights(edit, weight)
        case "int8-dynamic":
            quantize_dynamic(edit, weight)
        case "int8-static":
            quantize_static(edit, weight, plan.ranges)
        case _:
            assert_never(method)


def _foreign(plan: Plan, why: str) -> ConfigError:
    return ConfigError(
        f"the plan {plan.name!r} does not fit the model",
        why=why,
        fix="make a new plan: edgeopt plan",
    )
