"""The prune stage: a model and its task in, a smaller model and what was cut of it out."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import onnx

from edgeopt.artifact import Fact, Model, Plan
from edgeopt.compress.cost import stored_bytes
from edgeopt.compress.cuts import groups_by_name
from edgeopt.compress.flops import count_flops, find_products
from edgeopt.compress.groups import Group, open_network
from edgeopt.compress.ladder import Ladders, choose_cuts
from edgeopt.compress.plan import apply_plan
from edgeopt.cut import Cut, CutEntry, Pruning
from edgeopt.errors import ConfigError
from edgeopt.model.extra import require_packages
from edgeopt.model.graph import initializers
from edgeopt.task import Task, samples

#: Calibration samples: of 128, a wide layer has hardly more rows than inputs to fit.
CALIBRATION = 256


class Pruned(Fact):
    """A model without the units that were cut, and what they were."""

    model: Model
    pruning: Pruning


def measure_units(model: Model, task: Task | None) -> Ladders:
    """Measure what leaving out units of each group does, whatever share is to be cut.

    Raises ConfigError without a task or torch, ModelError where there is nothing to cut.
    """
    if task is None:
        raise ConfigError(
            "pruning needs a task",
            why="on what the model is really given depends which units it can do without",
            fix="add [task] to edgeopt.toml",
        )
    require_packages("the model cannot be pruned here", "torch")
    from edgeopt.compress.climb import measure_ladders

    return measure_ladders(model, samples(task, CALIBRATION, inputs=model.inputs))


def prune_model(
    model: Model, task: Task, ladders: Ladders, *, share: float, directory: Path
) -> Pruned:
    """Write directory/compressed.onnx: the model with a share of its operations left out.

    Units are chosen and what is left is fitted on the task's training samples alone, without
    their labels. Raises ConfigError where that much cannot be cut.
    """
    chosen = choose_cuts(model, ladders, share=share)
    return apply_cuts(model, task, chosen.cuts, harms=chosen.harms, directory=directory)


def apply_cuts(
    model: Model,
    task: Task,
    cuts: Sequence[Cut],
    *,
    harms: Sequence[float] = (),
    directory: Path,
) -> Pruned:
    """Write directory/compressed.onnx: the model with these cuts, fitted on the task's samples.

    The same model, task and cuts give the same bytes. Raises ConfigError for another model's.
    """
    drawn = samples(task, CALIBRATION, inputs=model.inputs)
    plan = Plan(name="pruned", choices=(), cuts=tuple(cuts))
    made = apply_plan(model, plan, directory=directory, samples=drawn)
    loaded = onnx.load(model.path)
    groups = groups_by_name(loaded)
    products = find_products(open_network(loaded), list(groups.values()))
    removed = {each.group: groups[each.group].units - len(each.kept) for each in cuts}
    before, after = (_sizes(each) for each in (model, made))
    entries = tuple(
        CutEntry(
            cut=cut,
            kind=group.kind,
            units=group.units,
            before=_bytes(group, before),
            after=_bytes(group, after),
            harm=harm,
        )
        for cut, harm in zip_longest(cuts, harms)
        for group in (groups[cut.group],)
    )
    pruning = Pruning(
        flops_before=count_flops(products, {}),
        flops_after=count_flops(products, removed),
        bytes_before=sum(before.values()),
        bytes_after=sum(after.values()),
        entries=entries,
    )
    return Pruned(model=made, pruning=pruning)


def _sizes(model: Model) -> dict[str, int]:
    stored = initializers(onnx.load(model.path).graph)
    return {name: stored_bytes(tensor) for name, tensor in stored.items()}


def _bytes(group: Group, sizes: Mapping[str, int]) -> int:
    """Add up the stored tensors that have a group's units."""
    return sum(sizes[name] for name in group.labels if name in sizes)
