"""Plans: made from a name, written as data, replayed to the same bytes."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import onnx

from edgeopt.artifact import Choice, Method, Model, Plan, Range, Recipe
from edgeopt.compress.affine import (
    channels_first,
    encode_affine,
    store_affine,
    store_affine_blocks,
    store_affine_rows,
)
from edgeopt.compress.bias import correct_biases
from edgeopt.compress.blocks import (
    BITS,
    CODEBOOKS,
    SIGNS,
    blocks_last,
    encode_blocks,
    opset_of,
    store_blocks,
)
from edgeopt.compress.calibrate import calibrate
from edgeopt.compress.choices import SMALLEST, choose, misfit
from edgeopt.compress.codebook import encode_groups, store_groups
from edgeopt.compress.codes import Codes, Floats
from edgeopt.compress.condition import equalize, smooth
from edgeopt.compress.cuts import cut_graph, groups_by_name, misfit_cut
from edgeopt.compress.dynamic import quantize_dynamic
from edgeopt.compress.edit import Edit
from edgeopt.compress.half import store_half
from edgeopt.compress.learned import Learned, learn
from edgeopt.compress.levels import find_levels
from edgeopt.compress.lowrank import factorize
from edgeopt.compress.opset import raise_opset
from edgeopt.compress.palette import encode_palette, store_palette
from edgeopt.compress.reconstruct import Rounded, reconstruct, require_samples
from edgeopt.compress.rows import store_rows
from edgeopt.compress.share import share_rows
from edgeopt.compress.sparse import SPARSE, store_sparse
from edgeopt.compress.sparse_choices import base_of, misfit_sparse, sparse_choice
from edgeopt.compress.static import quantize_static
from edgeopt.compress.tied import misfit_tie, tie_weights
from edgeopt.compress.weights import store_weights
from edgeopt.compress.zeros import Kept, sparsify_weights
from edgeopt.errors import ConfigError
from edgeopt.model.extra import require_packages
from edgeopt.model.graph import Weight, consumers, weights
from edgeopt.model.oracle import Array
from edgeopt.sparsify import Sparsify
from edgeopt.store import digest_file


def make_plan(
    model: Model,
    method: Method,
    *,
    samples: Mapping[str, Array] | None = None,
    directory: Path,
    recipe: Recipe | None = None,
    zeros: Sparsify | None = None,
    loaded: onnx.ModelProto | None = None,
) -> Plan:
    """Choose for every weight what a method means for it; the plan has the method's name.

    recipe: what is done around it; None: nothing. zeros: what a sparse method sets to zero first;
    None: nothing. Zeros that a model has any method leaves out where that is smaller and faster.
    loaded: the model's file, where it was read.

    int8-static needs samples, inputs as [S, *shape], and raises ConfigError without them.
    """
    loaded = loaded or onnx.load(model.path)
    found = [each for each in weights(loaded.graph) if each.size >= SMALLEST]
    recipe = recipe or Recipe()
    asked = method in SPARSE
    choices = tuple(
        sparse_choice(loaded, each, choice, zeros if asked else None, asked=asked)
        for each in found
        for choice in (choose(loaded, each, base_of(method), recipe.numbers),)
    )
    ranges: tuple[Range, ...] = ()
    if method == "int8-static":
        static = {each.weight for each in choices if each.method == "int8-static"}
        wanted = list(zip(found, choices, strict=True))
        loaded = _condition(loaded, recipe, wanted, samples)
        tensors = _activations(loaded.graph, [each for each in found if each.name in static])
        directory.mkdir(parents=True, exist_ok=True)
        given = samples or {}
        if tensors:
            ranges = calibrate(loaded, tensors, given, directory, recipe.ranges)
    return Plan(name=method, choices=choices, ranges=ranges, recipe=recipe)


def _condition(
    model: onnx.ModelProto,
    recipe: Recipe,
    wanted: Sequence[tuple[Weight, Choice]],
    samples: Mapping[str, Array] | None,
) -> onnx.ModelProto:
    """Change float weights as a recipe says, without changing what the model computes."""
    if recipe.equalize:
        model = equalize(model)
    if recipe.smooth is None:
        return model
    return smooth(model, wanted, require_samples(samples, "smoothed"), recipe.smooth)


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
    learned: Learned | None = None,
) -> Model:
    """Write directory/compressed.onnx: standard ONNX with the names and shapes of the model.

    The same model, plan and samples give the same bytes. A plan that reconstructs or refits needs
    samples, inputs as [S, *shape], or, to reconstruct, what was learned from them. Raises
    ConfigError without, and for a plan that was made for another model; ModelError where the
    model's operators keep it from what the plan needs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory.resolve() / "compressed.onnx"
    changed = any(
        each.method != "float32" or each.rank or each.rows or each.like for each in plan.choices
    )
    if not (plan.cuts or changed):
        shutil.copyfile(model.path, path)
        return _made(model, path, plan)
    loaded = _cut(onnx.load(model.path), plan, samples)
    raise_opset(loaded, max(map(opset_of, plan.choices), default=0))
    found = _named(loaded, plan)
    why = misfit_tie(found, plan.choices)
    if why is not None:
        raise _foreign(plan, why)
    loaded = tie_weights(loaded, plan.choices)
    own = tuple(each for each in plan.choices if each.like is None)
    plan = plan.model_copy(update={"choices": own})
    wanted = [(found[each.weight], each) for each in plan.choices]
    loaded = _condition(loaded, plan.recipe, wanted, samples)
    _found(loaded, plan)
    if plan.in_turn:
        require_packages("layers cannot be fitted in turn here", "torch")
        from edgeopt.compress.sequence import fit_in_turn

        learned = fit_in_turn(loaded, wanted, require_samples(samples, "fitted"), rewrite_weights)
    learned = learned or learn(loaded, wanted, samples)
    before = onnx.ModelProto()
    if plan.recipe.correct_bias:
        before.CopyFrom(loaded)
    made = rewrite_weights(loaded, plan, learned)
    if plan.recipe.correct_bias:
        drawn = require_samples(samples, "corrected")
        made = correct_biases(before, made, wanted, drawn)
    path.write_bytes(made.SerializeToString(deterministic=True))
    return _made(model, path, plan)


def rewrite_weights(loaded: onnx.ModelProto, plan: Plan, learned: Learned) -> onnx.ModelProto:
    """Rewrite each weight in the form of its choice, by what was learned from samples.

    The model has the operator set that the plan's forms need.
    """
    found = {each.name: each for each in weights(loaded.graph)}
    wanted = [(found[each.weight], each) for each in plan.choices]
    loaded, stays = sparsify_weights(loaded, wanted, learned.hessians)
    fewer = [each for each in wanted if each[1].rows]
    shared = share_rows(loaded, fewer, learned.reads, learned.factors)
    ranked = [each for each in wanted if each[1].rank]
    low = factorize(shared.model, ranked, learned.hessians, learned.factors)
    loaded = low.model
    kept = (each for each in plan.choices if not each.rank and not each.rows)
    choices = (*kept, *shared.choices, *low.choices)
    found = {each.name: each for each in weights(loaded.graph)}
    edit = Edit(loaded)
    learned = Learned(
        {**learned.hessians, **low.hessians},
        {**learned.reads, **shared.reads},
        learned.factors,
    )
    fitted = _fit(loaded, [(found[each.weight], each) for each in choices], learned, stays)
    for choice in choices:
        _apply(edit, found[choice.weight], choice, plan, fitted)
    return edit.finish()


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


@dataclass(frozen=True, slots=True)
class _Fitted:
    """What samples said, by weight: codes that were found, and how often rows were read."""

    codes: Mapping[str, Rounded]
    reads: Mapping[str, Floats]
    #: Values [K, N] that stay, where others were set to zero.
    stays: Mapping[str, Kept]


def _fit(
    model: onnx.ModelProto,
    wanted: Sequence[tuple[Weight, Choice]],
    learned: Learned,
    stays: Mapping[str, Kept],
) -> _Fitted:
    """Round the codes of weights whose choices say so."""
    asked = [each for each in wanted if each[1].reconstruct and each[0].name in learned.hessians]
    found = reconstruct(model, asked, learned.hessians, learned.factors)
    return _Fitted(found, learned.reads, stays)


def _made(model: Model, path: Path, plan: Plan) -> Model:
    """Return the facts of a compressed model: those of the original, in another file."""
    return model.model_copy(
        update={
            "path": path,
            "sha256": digest_file(path),
            "provenance": (*model.provenance, plan.name),
        }
    )


def _named(model: onnx.ModelProto, plan: Plan) -> dict[str, Weight]:
    """Return the model's weights by name; refuses choices for others."""
    found = {each.name: each for each in weights(model.graph)}
    for choice in plan.choices:
        if choice.weight not in found:
            raise _foreign(plan, f"the model has no weight {choice.weight!r}")
    return found


def _found(model: onnx.ModelProto, plan: Plan) -> dict[str, Weight]:
    """Return the model's weights by name; refuses choices that they have no form for."""
    found = _named(model, plan)
    edit = Edit(model)
    for choice in plan.choices:
        _refuse_foreign(edit, found[choice.weight], choice, plan)
    return found


def _refuse_foreign(edit: Edit, weight: Weight, choice: Choice, plan: Plan) -> None:
    """Refuse a choice that this weight has no form for."""
    why = misfit(weight, choice) if choice.width is None else misfit_sparse(weight, choice)
    if why is not None:
        raise _foreign(plan, why)
    if choice.method == "int8-static":
        known = {each.tensor for each in plan.ranges}
        for node in edit.readers(weight.name):
            if node.input[0] not in known:
                raise _foreign(plan, f"it has no range for {node.input[0]!r}")


def _apply(edit: Edit, weight: Weight, choice: Choice, plan: Plan, fitted: _Fitted) -> None:
    """Rewrite one weight in one form, by what samples said of it, if anything."""
    match choice.method:
        case "float32":
            return
        case "float16":
            store_half(edit, weight)
        case "int8-rows" | "int8-weights" | "int8-dynamic" | "int8-static":
            _store_bytes(edit, weight, choice, plan, fitted)
        case "codebook-weights":
            palette = encode_palette(channels_first(weight, edit.value(weight)), choice)
            store_palette(edit, weight, palette, channels=choice.channels)
        case (
            "float32-sparse"
            | "float16-sparse"
            | "int8-sparse"
            | "int8-blocks"
            | "int4-blocks"
            | "int2-blocks"
            | "codebook16-blocks"
            | "codebook4-blocks"
            | "codebook-rows"
            | "ternary-blocks"
            | "binary-blocks"
        ):
            _store_parts(edit, weight, choice, fitted)
        case _:
            assert_never(choice.method)


def _store_bytes(edit: Edit, weight: Weight, choice: Choice, plan: Plan, fitted: _Fitted) -> None:
    """Store a weight in 8 bits, with a scale for each row or channel unless its numbers say not."""
    if choice.numbers.is_affine:
        _store_affine(edit, weight, choice)
    elif choice.method == "int8-rows":
        store_rows(edit, weight)
    elif choice.method == "int8-weights":
        store_weights(edit, weight, _channels(weight, fitted.codes.get(weight.name)))
    elif choice.method == "int8-dynamic":
        quantize_dynamic(edit, weight)
    else:
        quantize_static(edit, weight, plan.ranges)


def _store_parts(edit: Edit, weight: Weight, choice: Choice, fitted: _Fitted) -> None:
    """Store a matrix without blocks of zeros, a table in groups of values, or a weight in blocks.

    These by the codes that were found; where none were, each value has the nearest.
    """
    if choice.width is not None:
        store_sparse(edit, weight, choice, fitted.stays.get(weight.name))
        return
    if choice.group is not None:
        reads = fitted.reads.get(weight.name)
        grouped = encode_groups(edit.value(weight), group=choice.group, importance=reads)
        store_groups(edit, weight, grouped)
        return
    assert choice.block is not None
    if choice.method == "int8-blocks" and choice.numbers.is_affine:
        _store_affine(edit, weight, choice)
        return
    rounded, bits = fitted.codes.get(weight.name), BITS[choice.method]
    if rounded is None:
        rounded = _round_nearest(blocks_last(weight, edit.value(weight)), choice, choice.block)
    codes, scales, levels = rounded.codes, rounded.scales, rounded.levels
    store_blocks(edit, weight, codes, scales, bits=bits, levels=levels)


def _round_nearest(values: Floats, choice: Choice, block: int) -> Rounded:
    """Round every value to the nearest code, or the nearest level of the weight's own."""
    bits, levels = BITS[choice.method], SIGNS.get(choice.method)
    if choice.method in CODEBOOKS:
        levels = find_levels(values, block=block, bits=bits, spacing=choice.numbers.levels)
    powers = choice.numbers.power_of_two
    found = encode_blocks(values, block=block, bits=bits, levels=levels, power_of_two=powers)
    return Rounded(*found, levels)


def _store_affine(edit: Edit, weight: Weight, choice: Choice) -> None:
    """Store codes of 8 bits whose numbers are not the usual ones."""
    if choice.block is not None:
        rows = blocks_last(weight, edit.value(weight))
        encoded = encode_affine(rows, choice.numbers, block=choice.block)
        store_affine_blocks(edit, weight, encoded, block=choice.block)
        return
    encoded = encode_affine(channels_first(weight, edit.value(weight)), choice.numbers)
    if weight.role == "table":
        store_affine_rows(edit, weight, encoded)
    else:
        store_affine(edit, weight, encoded)


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
