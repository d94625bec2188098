"""Harm at equal bytes: a mixture by integer programming, by greed, and one form for all weights.

    python -m tests.bench.harm trec silero ocr-recogniser [--effort quick]

Names a project's folder or a model of tests.bench.suite, which has no task: harm is then that of
drawn inputs. Each uniform plan sets the limit on bytes that the others have to meet. Harm is how
far the outputs of the whole move (edgeopt.compress.distance) on 64 inputs that chose nothing, in
brackets as a share of that of the uniform plan; the uniform plans are those that profiles name.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from edgeopt.artifact import Footprint, Method, Model
from edgeopt.budget import Budget
from edgeopt.cli.request import Request, make_order, started
from edgeopt.compress import apply_plan, draw_calibration, make_plan, predict_footprint
from edgeopt.compress.distance import measure_harm as distance
from edgeopt.compress.knapsack import Limit
from edgeopt.compress.mix import Mixer
from edgeopt.compress.repair import repair_choice
from edgeopt.compress.sensitivity import Option
from edgeopt.fitting import measure_harm
from edgeopt.job import Run
from edgeopt.model.oracle import Array, draw_inputs, run_samples
from edgeopt.prepare import prepare_model
from edgeopt.task import labelled
from edgeopt.units import format_bytes
from tests.bench.prepare import print_table
from tests.bench.suite import SUITE, suite_folder, write_suite

_FRESH = 64
_UNIFORM: tuple[Method, ...] = ("int8-weights", "int4-blocks")


def request_of(subject: str, *, target: str = "x86-64", effort: str = "standard") -> Request:
    """Return what is asked for a project's folder, or for a model of the suite."""
    if Path(subject).is_dir():
        project, model = Path(subject), None
    elif subject in {each.name for each in SUITE}:
        folder = write_suite(suite_folder(), only=(subject,))
        project, model = folder, f"{subject}.onnx"
    else:
        raise SystemExit(f"{subject} is neither a folder nor a model of the suite")
    return Request(
        target=target,
        project=project,
        model=model,
        profile="tiny",
        effort=effort,
        trim_vocabulary=None,
        on_board=False,
    )


def descend(layers: Sequence[Sequence[Option]], limit: Limit) -> list[int]:
    """Step down, always where a byte costs the least harm, until the limit holds."""
    places = [min(range(len(each)), key=lambda at: each[at].harm) for each in layers]
    while limit.spent(places) > limit.most:
        steps = [
            ((option.harm - layer[at].harm) / (costs[at] - cost), index, place)
            for index, (layer, costs, at) in enumerate(
                zip(layers, limit.costs, places, strict=True)
            )
            for place, (option, cost) in enumerate(zip(layer, costs, strict=True))
            if cost < costs[at]
        ]
        _, index, place = min(steps)
        places[index] = place
    return places


def _descend_within(mixer: Mixer, limit: Limit, flash: int, folder: Path) -> list[int]:
    """Descend until the bytes as they are predicted hold too: alignment is no part of a limit."""
    while True:
        places = descend(mixer.layers, limit)
        over = mixer.make(places, folder).footprint.flash - flash
        if over <= 0:
            return places
        limit = replace(limit, most=limit.spent(places) - over)


def compare_subject(run: Run, name: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield a row for each uniform plan: the bytes, and harms of all that fit into them."""
    job, model = run.job, prepare_model(run)
    calibration = draw_calibration(model, job.task, effort=job.effort)
    fresh = _fresh_inputs(run, model)
    expected = run_samples(model, fresh)

    def cost(made: Model) -> Footprint:
        return predict_footprint(made, job.target, runtime=0, program=0)

    def harm(made: Model) -> float:
        found = run_samples(made, fresh)
        return distance(found, expected, classes=calibration.classes)

    mixer = Mixer(model, measure_harm(run, model), cost, samples=calibration.fitted, plain=True)
    for method in _UNIFORM:
        plan = make_plan(model, method, directory=folder)
        uniform = apply_plan(model, plan, directory=folder / "uniform")
        limit = Budget(flash=cost(uniform).flash)
        chosen = mixer.choose(limit, folder / "mixed")
        assert chosen is not None
        (size,) = chosen.limits
        greedy = _descend_within(mixer, size, limit.flash or 0, folder / "descent")
        swapped = repair_choice(
            mixer, chosen, calibration, tries=job.effort.swaps or 24, directory=folder / "repair"
        )
        harms = [harm(uniform)]
        for label, places in (("greedy", greedy), ("mixed", chosen.places), ("swap", swapped)):
            made = mixer.make(places, folder / label)
            assert made.footprint.flash <= (limit.flash or 0)
            harms.append(harm(made.model))
        cells = [f"{each:.2e} ({each / harms[0]:.2f})" for each in harms]
        yield (name, method, format_bytes(limit.flash or 0), *cells)


def _fresh_inputs(run: Run, model: Model) -> dict[str, Array]:
    """Return inputs [S, *shape] of the task's validation, or drawn by other seeds than any."""
    if run.job.task is not None:
        found = labelled(run.job.task, _FRESH, inputs=model.inputs, part="validation")
        assert found is not None
        return dict(found[0])
    graph = onnx.load(model.path).graph
    drawn = [draw_inputs(graph, model.inputs, 1000 + seed) for seed in range(_FRESH)]
    return {name: np.stack([each[name] for each in drawn]) for name in drawn[0]}


def main() -> None:
    """Compare the subjects named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="+")
    parser.add_argument("--effort", default="standard")
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = [
        ("model", "uniform", "bytes", "uniform harm", "greedy", "integer program", "repaired")
    ]
    for subject in options.subjects:
        order = make_order(request_of(subject, effort=options.effort))
        with started(order) as run, TemporaryDirectory(prefix="edgeopt-harm-") as folder:
            rows += compare_subject(run, Path(subject).name, Path(folder))
    print_table(rows)


if __name__ == "__main__":
    main()
