"""What pruning keeps and what it saves on this machine, for projects with a test file.

    python -m tests.bench.pruned PROJECT ... [--share 50% --share 30%] [--rounds 300]

Accuracy is that of the test file, which nothing was chosen or fitted on. Time is that of one
thread of this machine, whole and pruned model taking turns in one process; the ratio is that of
the minima; with no rounds nothing is timed.
"""

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from edgeopt.artifact import Model
from edgeopt.cli.request import Request, make_order, started
from edgeopt.cut import Pruning
from edgeopt.model.oracle import run_samples
from edgeopt.prepare import prepare_model, prune_units
from edgeopt.task import Task, labelled, score
from edgeopt.units import format_bytes, parse_fraction
from tests.bench.native import compiled, take_turns
from tests.bench.prepare import NATIVE, draw_samples, print_table


def main() -> None:
    """Prune each project by each share, and print what is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("projects", nargs="+", type=Path)
    parser.add_argument("--share", action="append", dest="shares")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = "1"
    rows = [("project", "cut", "MFLOP left", "weights", "accuracy", "ms", "ratio")]
    for project in options.projects:
        request = Request(target="x86-64", project=project, on_board=False)
        with started(make_order(request)) as run:
            whole = prepare_model(run)
            rows.append((project.name, "-", "100 %", "", f"{_accuracy(run.job.task, whole):.4f}",
                         "", ""))  # fmt: skip
            for share in options.shares or ["50%"]:
                profile = run.job.profile.model_copy(update={"prune": parse_fraction(share)})
                cut = replace(run, job=replace(run.job, profile=profile))
                after, made = prune_units(cut, whole)
                pruning = after.job.pruning
                assert pruning is not None
                times = _race(whole, made, options.rounds) if options.rounds else ("-", "-")
                kept = f"{_accuracy(run.job.task, made):.4f}"
                rows.append((project.name, share, *_sizes(pruning), kept, *times))
    print_table(rows)


def _accuracy(task: Task | None, model: Model) -> float:
    assert task is not None
    found = labelled(task, None, inputs=model.inputs)
    assert found is not None
    return score(task, run_samples(model, found[0]), found[1])


def _sizes(pruning: Pruning) -> tuple[str, str]:
    left = pruning.flops_after / pruning.flops_before
    return f"{left:.1%}", format_bytes(pruning.bytes_after)


def _race(whole: Model, made: Model, rounds: int) -> tuple[str, str]:
    """Return the shortest time of the pruned model in ms, and its ratio to the whole one's."""
    import tvm

    feeds = draw_samples(whole, 1)
    given = [tvm.runtime.tensor(feeds[each.name][0]) for each in whole.inputs]
    runs = [partial(compiled(each.path, NATIVE), *given) for each in (whole, made)]
    before, after = take_turns(rounds, *runs)
    return f"{min(after):.2f}", f"{min(after) / min(before):.3f}"


if __name__ == "__main__":
    main()
