"""Plans: made from a name, written as data, replayed to the same bytes."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import assert_never

import onnx

from edgeopt.artifact import Choice, Method, Model, Plan, Range
from edgeopt.compress.blocks import BITS, OPSETS, blocks_last, encode_blocks, store_blocks
from edgeopt.compress.calibrate import calibrate
from edgeopt.compress.choices import SMALLEST, choose, misfit
from edgeopt.compress.codes import Codes, Floats
from edgeopt.compress.cuts import cut_graph, groups_by_name, misfit_cut
from edgeopt.compress.dynamic import quantize_dynamic
from edgeopt.compress.edit import Edit
from edgeopt.compress.half import store_half
from edgeopt.compress.opset import raise_opset
from edgeopt.compress.reconstruct import Rounded, reconstruct, require_samples
from edgeopt.compress.rows import store_rows
from edgeopt.compress.static import quantize_static
from edgeopt.compress.weights import store_weights
from edgeopt.errors import ConfigError
from edgeopt.model.extra import require_packages
from edgeopt.model.graph import Weight, consumers, weights
from edgeopt.model.oracle import Array
from edgeopt.store import digest_file


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
    choices = tuple(choose(loaded, each, method) for each in found)
    ranges: tuple[Range, ...] = ()
    if method == "int8-static":
        static = {each.weight for each in choices if each.method == "int8-static"}
        tensors = _activations(loaded.graph, [each for each in found if each.name in static])
        directory.mkdir(parents=True, exist_ok=True)
        ranges = calibrate(loaded, tensors, samples or {}, directory) if tensors else ()
    return Plan(name=method, choices=choices, ranges=ranges)


def _activations(graph: onnx.GraphProto, found: Sequence[Weight]) -> list[str]:
    """List the tensors that the readers of these weights multiply them with, once each."""
    readers = consumers(graph)
    return list(dict.fromkeys(node.input[0] for each in found for node in readers[each.name]))


def apply_plan(
    model: Model,
    plan: Plan,
    *,
    directory: Path,
    samples: Mapping[str, Array] | None = None,
) -> Model:
    """Write directory/compressed.onnx: standard ONNX with the names and shapes of the model.

    The same model, plan and samples give the same bytes. A plan that reconstructs or refits needs
    samples, inputs as [S, *shape]. Raises ConfigError without them, and for a plan that was made
    for another model; ModelError where the model's operators keep it from what the plan needs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.resolve() / "compressed.onnx"
    if not plan.cuts and all(each.method == "float32" for each in plan.choices):
        shutil.copyfile(model.path, path)
        return _made(model, path, plan)
    loaded = _cut(onnx.load(model.path), plan, samples)
    raise_opset(loaded, max((OPSETS.get(each.method, 0) for each in plan.choices), default=0))
    found = {each.name: each for each in weights(loaded.graph)}
    edit = Edit(loaded)
    for choice in plan.choices:
        if choice.weight not in found:
            raise _foreign(plan, f"the model has no weight {choice.weight!r}")
        _refuse_foreign(edit, found[choice.weight], choice, plan)
    reconstructed = [each for each in plan.choices if each.reconstruct]
    rounded = reconstruct(loaded, [(found[each.weight], each) for each in reconstructed], samples)
    for choice in plan.choices:
        _apply(edit, found[choice.weight], choice, plan, rounded.get(choice.weight))
    path.write_bytes(edit.finish().SerializeToString(deterministic=True))
    return _made(model, path, plan)


def _cut(
    model: onnx.ModelProto, plan: Plan, samples: Mapping[str, Array] | None
) -> onnx.ModelProto:
    """Leave out the units that a plan cuts, and fit what reads the rest."""
    if not plan.cuts:
        return model
    groups = groups_by_name(model)
    for cut in plan.cuts:
        why = misfit_cut(groups, cut)
        if why is not None:
            raise _foreign(plan, why)
    again = [each for each in plan.cuts if each.refit]
    if again:
        require_packages("what pruning leaves cannot be fitted here", "torch")
        from edgeopt.compress.refit import refit_readers

        refit_readers(model, again, groups, require_samples(samples, "refitted"))
    return cut_graph(model, plan.cuts, groups)


def _made(model: Model, path: Path, plan: Plan) -> Model:
    """Return the facts of a compressed model: those of the original, in another file."""
    return model.model_copy(
        update={
            "path": path,
            "sha256": digest_file(path),
            "provenance": (*model.provenance, plan.name),
        }
    )


def _refuse_foreign(edit: Edit, weight: Weight, choice: Choice, plan: Plan) -> None:
    """Refuse a choice that this weight has no form for."""
    why = misfit(weight, choice)
    if why is not None:
        raise _foreign(plan, why)
    if choice.method == "int8-static":
        known = {each.tensor for each in plan.ranges}
        for node in edit.readers(weight.name):
            if node.input[0] not in known:
                raise _foreign(plan, f"it has no range for {node.input[0]!r}")


def _apply(edit: Edit, weight: Weight, choice: Choice, plan: Plan, rounded: Rounded | None) -> None:
    """Rewrite one weight in one form, with the codes that were found for it, if any."""
    match choice.method:
        case "float32":
            return
        case "float16":
            store_half(edit, weight)
        case "int8-rows":
            store_rows(edit, weight)
        case "int8-weights":
            store_weights(edit, weight, _channels(weight, rounded))
        case "int8-dynamic":
            quantize_dynamic(edit, weight)
        case "int8-static":
            quantize_static(edit, weight, plan.ranges)
        case "int4-blocks" | "int2-blocks":
            _store_blocks(edit, weight, choice, rounded)
        case _:
            assert_never(choice.method)


def _store_blocks(edit: Edit, weight: Weight, choice: Choice, rounded: Rounded | None) -> None:
    """Store a weight in blocks: by the codes that were found for it, or the nearest."""
    assert choice.block is not None
    bits = BITS[choice.method]
    if rounded is None:
        values = blocks_last(weight, edit.value(weight))
        rounded = Rounded(*encode_blocks(values, block=choice.block, bits=bits))
    store_blocks(edit, weight, rounded.codes, rounded.scales, bits=bits)


def _channels(weight: Weight, rounded: Rounded | None) -> tuple[Codes, Floats] | None:
    """Turn codes [N, K] that were found, if any, to the weight's own axes."""
    if rounded is None:
        return None
    codes = rounded.codes if weight.axis == 0 else rounded.codes.T
    return codes, rounded.scales.reshape(-1)


def _foreign(plan: Plan, why: str) -> ConfigError:
    return ConfigError(
        f"the plan {plan.name!r} does not fit the model",
        why=why,
        fix="make a new plan: edgeopt plan",
    )
