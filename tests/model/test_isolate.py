import os
from pathlib import Path

import pytest

from edgeopt.errors import ModelError
from edgeopt.model import load_model
from edgeopt.model.isolate import Limits, Standby, run_isolated
from edgeopt.model.load import describe_model
from tests.graphs import image_model, text_model


def children() -> set[str]:
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return {child for each in tasks for child in each.read_text().split()}


def test_a_worker_that_waits_answers_as_one_that_is_started_for_it(tmp_path: Path) -> None:
    request = {"path": str(text_model(tmp_path).path)}
    expected = run_isolated("describe", request, directory=tmp_path)
    before = children()
    with Standby() as standby:
        standby.start("describe")
        standby.start("describe")
        assert len(children() - before) == 1
        assert run_isolated("describe", request, directory=tmp_path, standby=standby) == expected
        assert children() == before
        # It answers once; whoever asks again has one started.
        assert run_isolated("describe", request, directory=tmp_path, standby=standby) == expected


def test_a_worker_that_nobody_asks_is_ended() -> None:
    before = children()
    with Standby() as standby:
        standby.start("normalize")
        assert len(children() - before) == 1
    assert children() == before


def test_limits_of_a_request_are_not_those_of_a_worker_that_waits(tmp_path: Path) -> None:
    request = {"path": str(text_model(tmp_path).path)}
    with Standby() as standby:
        standby.start("describe")
        with pytest.raises(ModelError, match="too long"):
            run_isolated(
                "describe", request, directory=tmp_path, limits=Limits(wall=0.01), standby=standby
            )


def test_a_worker_that_waited_and_died_leaves_what_it_said(tmp_path: Path) -> None:
    with Standby() as standby:
        standby.start("describe")
        with pytest.raises(ModelError, match="cannot be read") as caught:
            run_isolated("describe", {"wrong": 1}, directory=tmp_path, standby=standby)
    assert "unexpected keyword argument 'wrong'" in caught.value.why
    assert "Traceback" in (tmp_path / "worker.log").read_text()


def test_what_was_said_of_a_file_counts_for_no_other_one(tmp_path: Path) -> None:
    model = image_model(tmp_path)
    said = describe_model(model.path, directory=tmp_path)
    folder, name = model.path.parent, model.path.name
    loaded = load_model(name, directory=tmp_path / "in", search=folder, described=said)
    assert (loaded.inputs, loaded.outputs) == (said.inputs, said.outputs)
    assert (loaded.parameters, loaded.sha256) == (said.parameters, said.sha256)
    model.path.write_bytes(text_model(tmp_path).path.read_bytes())
    with pytest.raises(ModelError, match="changes while it is read"):
        load_model(name, directory=tmp_path / "again", search=folder, described=said)
