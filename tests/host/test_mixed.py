"""A form of its own for every weight: planned, drawn, deployed and compared, as a user types it."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.cli.places import cache_folder
from tests.tiny import write_tiny

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]

PROFILE = """
name = "mine"
title = "Forms of storage"
methods = ["float32", "float16", "int8-weights", "int4-blocks"]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEOPT_CACHE_DIR", str(cache_folder()))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = write_tiny(tmp_path / "project")
    (folder / "profiles").mkdir()
    (folder / "profiles" / "mine.toml").write_text(PROFILE)
    return folder


def types(project: Path, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "edgeopt",
            verb,
            "--target",
            "x86-64",
            "--profile",
            "mine",
            *options,
        ],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_the_best_mixtures_of_several_sizes_are_listed_and_drawn(project: Path) -> None:
    done = types(project, "plan", "--front", "6", "--svg", "front.svg", "--json")
    assert done.returncode == 0, done.stderr
    plans = json.loads(done.stdout)["plans"]
    assert len(plans) >= 4
    sizes = [each["flash"] for each in plans]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    # The first is the model as it came, the last what no form goes below.
    assert plans[0]["drop"] == 0.0
    assert plans[-1]["drop"] > 0.05
    assert (project / "front.svg").read_text().count("<circle") == len(plans)


def test_what_fits_no_method_for_all_is_deployed_as_a_mixture(project: Path) -> None:
    planned = types(project, "plan", "--flash", "2.6MB", "--max-drop", "0.5%", "--json")
    assert planned.returncode == 3, planned.stderr
    assert "mixed" in planned.stderr
    done = types(project, "deploy", "--flash", "2.57MB", "--max-drop", "2%", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    tried = {each["plan"]: each for each in report["tried"]}
    assert tried["float16"]["broken"]
    assert report["rows"][-1]["plan"] == "mixed"
    assert report["kept"]
    checks = {each["name"]: each for each in report["checks"]}
    assert checks["flash"]["measured"] <= 2_570_000
    assert checks["parity"]["measured"] <= checks["parity"]["limit"]


def test_every_weight_of_a_mixture_is_explained(project: Path) -> None:
    done = types(project, "plan", "--flash", "2.57MB", "--max-drop", "2%", "--layers")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.split()}
    assert lines["table"][1] == "int8-rows"
    assert lines["hidden"][1] in ("float16", "float32", "int8-weights")
