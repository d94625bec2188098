"""The plugin deploys models to this machine through the real pipeline, as a user's tests do."""

import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from edgeopt.cli.places import cache_folder
from tests.test_readme import BLOCKS
from tests.tiny import write_tiny

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]

EXAMPLE = next(each for each in BLOCKS if "assert_not_slower" in each)

Done = subprocess.CompletedProcess[str]


class Project:
    """A project with a tiny model, and a home folder where what it deploys goes."""

    def __init__(self, folder: Path) -> None:
        self.folder = write_tiny(folder / "project")
        (self.folder / "tiny.onnx").rename(self.folder / "model.onnx")
        text = (self.folder / "edgeopt.toml").read_text()
        (self.folder / "edgeopt.toml").write_text(text.replace("tiny.onnx", "model.onnx"))
        (self.folder / "pytest.ini").write_text("[pytest]\nedgeopt_launches = 5\n")
        self.home = folder

    def has(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def tests(self, *arguments: str) -> Done:
        argv = [sys.executable, "-m", "pytest", "-p", "edgeopt.pytest_plugin", "-ra"]
        argv += ["-p", "no:cacheprovider", "--board", "local", *arguments]
        return subprocess.run(
            argv,
            cwd=self.folder,
            env=os.environ | {"HOME": str(self.home), "EDGEOPT_CACHE_DIR": str(cache_folder())},
            capture_output=True,
            text=True,
            timeout=400,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def said(done: Done) -> str:
    return done.stdout + done.stderr


def test_the_readmes_example_is_short_and_runs_as_it_stands(project: Project) -> None:
    assert len(EXAMPLE.splitlines()) == 10
    project.has("test_model.py", EXAMPLE)
    first = project.tests("--update-baselines")
    assert first.returncode == 0, said(first)
    stored = json.loads((project.folder / "baselines" / "x86-64" / "model.json").read_text())
    assert len(stored["launches"]) == 5
    # A lax tolerance: other work on this machine is not what is tested here.
    project.has("test_model.py", EXAMPLE.replace("0.03", "20"))
    again = project.tests("--junitxml", "report.xml")
    assert again.returncode == 0, said(again)
    assert "baseline model: " in again.stdout
    found = ET.parse(project.folder / "report.xml").iter("property")
    properties = {each.get("name"): each.get("value") or "" for each in found}
    assert {"board", "target", "kind", "digest", "peak", "median"} <= set(properties)
    assert properties["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert 0 < stored["fence"] < int(properties["fence"])
    assert properties["digest"] == stored["digest"]
    assert properties["median"].endswith(" ns")


def test_a_slower_model_and_a_broken_budget_are_failures(project: Project) -> None:
    project.has("test_model.py", EXAMPLE)
    assert project.tests("--update-baselines").returncode == 0
    path = project.folder / "baselines" / "x86-64" / "model.json"
    stored = json.loads(path.read_text())
    stored["launches"] = [[each // 50 + 1 for each in one] for one in stored["launches"]]
    path.write_text(json.dumps(stored))
    done = project.tests()
    assert done.returncode == 1
    assert "slower than baseline 'model' by more than 3.0%: slower: +" in done.stdout
    project.has("test_model.py", EXAMPLE.replace("32 * MB", "1 * MB"))
    done = project.tests()
    assert done.returncode == 1
    assert " MB (" in done.stdout
    assert "1 failed" in done.stdout


def test_a_baseline_of_other_conditions_is_an_error_and_no_failure(project: Project) -> None:
    project.has("test_model.py", EXAMPLE)
    missing = project.tests()
    assert "there is no baseline 'model' for x86-64" in missing.stdout
    assert "1 error" in missing.stdout
    assert project.tests("--update-baselines").returncode == 0
    path = project.folder / "baselines" / "x86-64" / "model.json"
    stored = json.loads(path.read_text())
    stored["setting"] |= {"board": "pi@the-other-desk", "governors": ["performance"]}
    path.write_text(json.dumps(stored))
    done = project.tests()
    assert done.returncode == 1
    assert "board was pi@the-other-desk, is this machine" in done.stdout
    assert "governors was performance (1), is " in done.stdout
    assert "1 error" in done.stdout
    assert "failed" not in done.stdout.splitlines()[-1]


def test_a_gate_that_does_not_hold_is_a_failure_although_it_is_in_the_set_up(
    project: Project,
) -> None:
    project.has(
        "test_model.py",
        "import pytest\n"
        "@pytest.mark.deploys(ram='1MB')\n"
        "def test_small(measurement):\n    pass\n"
        "@pytest.mark.deploys(rma='1MB')\n"
        "def test_misspelt(measurement):\n    pass\n"
        "@pytest.mark.deploys('missing.onnx')\n"
        "def test_missing(deployment):\n    pass\n",
    )
    done = project.tests()
    assert "Infeasible: " in done.stdout
    assert "deploys(...) knows no rma" in done.stdout
    assert "missing.onnx" in done.stdout
    # The models failed, and the third one was never tried.
    assert "2 failed, 1 error" in done.stdout


def test_deployments_are_made_once_beside_what_runs_there_and_compared_in_turns(
    project: Project,
) -> None:
    project.has(
        "test_model.py",
        """
from pathlib import Path
import pytest

def test_the_projects_own_model(deployment, release, board):
    assert release.app == "test-tiny"
    current = Path.home() / ".edgeopt/apps/test-tiny/current"
    assert current.readlink().name == deployment.digest
    assert [each.name for each in current.parents[1].iterdir()] == ["test-tiny"]
    assert board.run(["test", "-d", release.path], timeout=30).status == 0

def test_made_once(deploy):
    assert deploy() is deploy()

def test_one_thing_is_as_fast_as_itself(deploy, compare):
    found = compare(deploy(), deploy(), blocks=4, tolerance=5.0)
    assert found.count == 4
    assert found.verdict == "inconclusive"

def test_three_plans_and_the_first_is_still_comparable(deploy, compare):
    plans = [deploy(profile=name) for name in ("float32", "float16", "int8")]
    assert len({each.digest for each in plans}) == 3
    found = compare(plans[0], plans[2], blocks=4)
    assert found.low <= found.ratio <= found.high

def test_latency_is_told_in_milliseconds_and_instructions_are_not_counted(measurement):
    assert 0 < measurement.p50 <= measurement.p95 < 1000
    assert len(measurement.samples) >= 50
    assert measurement.agreement == 1
    assert 0 < measurement.flash < 10**9
    measurement.instructions
    raise AssertionError
""",
    )
    done = project.tests()
    assert done.returncode == 0, said(done)
    assert "4 passed, 1 skipped" in done.stdout, said(done)
    # What was there for the tests only is gone with them.
    assert list((project.home / ".edgeopt" / "apps").iterdir()) == []
    assert list((project.home / ".edgeopt" / "objects").iterdir()) == []
    assert "instructions are counted on emulated boards only" in done.stdout
