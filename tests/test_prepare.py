from pathlib import Path

from edgeopt.artifact import StageRecord
from edgeopt.job import Job, Run
from edgeopt.model.oracle import run_samples
from edgeopt.prepare import trim_model
from edgeopt.profile import load_profile
from edgeopt.store import Store
from edgeopt.target import load_target
from edgeopt.task import TextClassification, labelled, score
from tests.graphs import text_model
from tests.trim.test_vocabulary import task, write

__all__ = ["task"]


def test_drops_after_trimming_count_from_the_samples_that_plans_are_compared_on(
    task: TextClassification,
    tmp_path: Path,
) -> None:
    model = text_model(tmp_path)
    texts = ["ac", "ac bd", "ce df eg fh"]
    task = task.model_copy(update={"validation": write(tmp_path / "validation.jsonl", texts)})
    scores = []
    for part in ("validation", "test"):
        found = labelled(task, None, inputs=model.inputs, part=part)
        assert found is not None
        scores.append(score(task, run_samples(model, found[0]), found[1]))
    assert scores[0] != scores[1]
    job = Job(
        app="text",
        project=tmp_path,
        model="text.onnx",
        shapes={},
        values={},
        target=load_target("rpi4"),
        profile=load_profile("balanced"),
        task=task,
        kind="emulated",
    )
    told: list[StageRecord] = []
    run, trimmed = trim_model(Run(job, Store(tmp_path / "cache"), told.append), model)
    assert run.job.baseline == scores[0]
    assert trimmed.sha256 != model.sha256
    assert {each.name for each in told} == {"baseline", "trim"}
