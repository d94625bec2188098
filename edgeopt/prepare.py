"""Take a model in: loaded, normalized, and with the vocabulary that its task needs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from edgeopt.artifact import Fact, Model
from edgeopt.cut import Cut
from edgeopt.errors import ConfigError
from edgeopt.job import Job, Run, digest_task
from edgeopt.store import digest_file, digest_tree
from edgeopt.task import TextClassification, has_classes, labelled, score

if TYPE_CHECKING:
    from edgeopt.compress import Pruned
    from edgeopt.model.isolate import Standby
    from edgeopt.model.load import Description


class Baseline(Fact):
    """What the accuracy of every plan is compared with."""

    #: Of the task's metric, on all labelled samples.
    accuracy: float


def prepare_model(run: Run, *, ahead: Sequence[str] = ()) -> Model:
    """Load the model, normalize it, and refuse operators that cannot be compiled.

    ahead: modules that later stages need, imported while another process reads the model.
    """
    from edgeopt.model.isolate import Standby

    importing = Thread(target=lambda: list(map(import_module, ahead)))
    with Standby() as standby:
        loaded = _load(run, standby, importing)
        return _normalize(run, loaded, standby, importing)


def _load(run: Run, standby: "Standby", importing: Thread) -> Model:
    """Take the model in as it is; what normalizes it, and what comes later, is begun to import."""
    from edgeopt.model import load_model

    job = run.job
    source = _describe_source(run, standby)

    def load(folder: Path) -> Model:
        # An export takes one core.
        standby.start("normalize")
        importing.start()
        return load_model(
            job.model,
            directory=folder,
            search=job.project,
            described=source.described,
            standby=standby,
        )

    return run.stage("load", [job.model, source.digest], Model, load, detail=job.model)


def _normalize(run: Run, loaded: Model, standby: "Standby", importing: Thread) -> Model:
    from edgeopt.model import normalize_model

    job = run.job
    fixed = _shapes_of(job, loaded)

    def normalize(folder: Path) -> Model:
        model = normalize_model(
            loaded,
            shapes=fixed,
            values=job.values,
            outputs=job.outputs,
            directory=folder,
            standby=standby,
        )
        _wait_for(importing)
        from edgeopt.model.operators import check_operators

        check_operators(model.path)
        return model

    shapes = {name: list(shape) for name, shape in fixed.items()}
    key = [loaded.sha256, shapes, dict(job.values), *([job.outputs] if job.outputs else [])]
    model = run.stage("normalize", key, Model, normalize, detail=_unread(job, loaded))
    _wait_for(importing)
    return model


def _wait_for(importing: Thread) -> None:
    """Let a thread that was begun end: what two import at once may be seen unfinished."""
    if importing.ident is not None:
        importing.join()


def _shapes_of(job: Job, model: Model) -> dict[str, tuple[int, ...]]:
    """Return the shapes that are asked for; those left open of a model of texts are the task's."""
    found = dict(job.shapes)
    if isinstance(job.task, TextClassification):
        for each in model.inputs:
            if -1 in each.shape and len(each.shape) == 2 and each.name not in job.values:
                found.setdefault(each.name, (1, job.task.length))
    return found


def _unread(job: Job, model: Model) -> str:
    """Say which outputs a task does not read, where it is computed all the same."""
    if job.task is None or not has_classes(job.task) or job.outputs or len(model.outputs) < 2:
        return ""
    first, *others = (each.name for each in model.outputs)
    return f'the task does not read {", ".join(others)}: outputs = ["{first}"] leaves that out'


@dataclass(frozen=True, slots=True)
class _Source:
    """Digests of a model file and of its external data, or of a factory's whole folder."""

    digest: object
    #: What the file says.
    described: "Description | None" = None


def _describe_source(run: Run, standby: "Standby") -> _Source:
    from edgeopt.model.guard import check_external, check_model_file
    from edgeopt.model.load import Description, describe_model

    job = run.job
    if not job.model.endswith(".onnx"):
        return _Source(digest_tree(job.project))
    path = check_model_file(job.project / job.model)
    own = digest_file(path)

    def describe(folder: Path) -> Description:
        standby.start("normalize")
        return describe_model(path, directory=folder, digest=own)

    found = run.store.stage("describe", own, Description, describe, fresh=job.fresh).value
    check_external(found.external, path.parent)
    data = {each.location: digest_file(path.parent / each.location) for each in found.external}
    return _Source([own, data], found)


def trim_model(run: Run, model: Model) -> tuple[Run, Model]:
    """Trim model and tokenizer where the task asks for it, else return both as they are.

    The run that is returned has the shorter tokenizer, and its drops are measured from the
    accuracy of the model as it was, with the tokenizer as it was.
    """
    from edgeopt.trim import Trimmed, trim_vocabulary

    task = run.job.task
    if not isinstance(task, TextClassification) or not task.trim_vocabulary:
        return run, model
    started = time.monotonic()

    def trim(folder: Path) -> Trimmed:
        return trim_vocabulary(model, task, directory=folder)

    run.begin("trim")
    key = [model.sha256, digest_task(run.job), [each.name for each in model.inputs]]
    staged = run.store.stage("trim", key, Trimmed, trim, fresh=run.job.fresh)
    made, seconds = staged.value, time.monotonic() - started
    run.note("trim", str(made.vocabulary), cached=staged.cached, seconds=seconds)
    job = replace(
        run.job,
        task=task.model_copy(
            update={"tokenizer": made.vocabulary.tokenizer, "trim_vocabulary": False}
        ),
        vocabulary=made.vocabulary,
        baseline=_measure_baseline(run, model),
    )
    return replace(run, job=job), made.model


def shrink_model(run: Run, model: Model, cuts: Sequence[Cut] | None = None) -> tuple[Run, Model]:
    """Leave out what the task does not need: pieces of the vocabulary, then units of layers.

    Units are chosen as the profile asks, or are those of cuts that were chosen before.
    """
    return prune_units(*trim_model(run, model), cuts)


def prune_units(run: Run, model: Model, cuts: Sequence[Cut] | None = None) -> tuple[Run, Model]:
    """Cut units out of the model where that is asked for, else return both as they are.

    The run that is returned measures drops from the accuracy of the model as it was.
    """
    job = run.job
    if not (job.profile.prune if cuts is None else cuts):
        return run, model
    made = _choose_units(run, model) if cuts is None else _cut_units(run, model, cuts)
    baseline = job.baseline
    if baseline is None and job.task is not None and has_classes(job.task):
        baseline = _measure_baseline(run, model)
    pruned = replace(job, pruning=made.pruning, baseline=baseline)
    return replace(run, job=pruned), made.model


def _choose_units(run: Run, model: Model) -> "Pruned":
    """Cut the share of the profile; what leaving out units does is kept for other shares."""
    from edgeopt.compress import Pruned, measure_units, prune_model
    from edgeopt.compress.ladder import Ladders

    share, task = run.job.profile.prune, run.job.task
    assert share is not None
    key = [model.sha256, digest_task(run.job)]
    detail = "what leaving out units does"
    ladders = run.stage("units", key, Ladders, lambda _: measure_units(model, task), detail=detail)
    assert task is not None

    def prune(folder: Path) -> Pruned:
        return prune_model(model, task, ladders, share=share, directory=folder)

    detail = f"{share:.0%} of the operations left out"
    return run.stage("prune", [*key, share], Pruned, prune, detail=detail)


def _cut_units(run: Run, model: Model, cuts: Sequence[Cut]) -> "Pruned":
    """Make cuts that an earlier plan has."""
    from edgeopt.compress import Pruned, apply_cuts

    task = run.job.task
    if task is None:
        raise ConfigError(
            "the plan's cuts need a task",
            why="what they left was fitted on its samples",
            fix="add the [task] that the plan was made for to edgeopt.toml",
        )
    key = [model.sha256, digest_task(run.job), [each.model_dump() for each in cuts]]

    def cut(folder: Path) -> Pruned:
        return apply_cuts(model, task, cuts, directory=folder)

    return run.stage("cut", key, Pruned, cut, detail=f"out of {len(cuts)} groups, as planned")


def keep_vocabulary(run: Run) -> Run:
    """Return the run that is not asked to trim anything."""
    task = run.job.task
    if not isinstance(task, TextClassification):
        return run
    kept = task.model_copy(update={"trim_vocabulary": False})
    return replace(run, job=replace(run.job, task=kept))


def _measure_baseline(run: Run, model: Model) -> float:
    """Score the model before anything is done to it."""
    run = keep_vocabulary(run)
    task = run.job.task
    assert task is not None

    def measure(_folder: Path) -> Baseline:
        from edgeopt.model.oracle import run_samples

        found = labelled(task, None, inputs=model.inputs, part="validation")
        assert found is not None
        feeds, labels = found
        return Baseline(accuracy=score(task, run_samples(model, feeds), labels))

    key = [model.sha256, digest_task(run.job)]
    detail = "accuracy of the whole model"
    return run.stage("baseline", key, Baseline, measure, detail=detail).accuracy
