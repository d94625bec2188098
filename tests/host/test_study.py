"""edgeopt fit, diff and plan --targets as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from tests.tiny import write_tiny

pytestmark = pytest.mark.host

Done = subprocess.CompletedProcess[str]


def edgeopt(folder: Path, *arguments: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
    )


def fit(folder: Path, output: str, *arguments: str) -> Done:
    return edgeopt(folder, "fit", "--target", "rpi4", "--output", output, *arguments)


def test_a_fit_is_a_model_and_a_plan_that_make_the_same_again(tmp_path: Path) -> None:
    project = write_tiny(tmp_path)
    done = fit(project, "half", "--profile", "float16")
    assert done.returncode == 0, done.stderr
    assert "float16 for rpi4: flash" in done.stdout
    onnxruntime.InferenceSession(project / "half" / "model.onnx")
    again = fit(project, "again", "--plan", "half")
    assert again.returncode == 0, again.stderr
    first, second = ((project / each / "model.onnx").read_bytes() for each in ("half", "again"))
    assert first == second
    assert "warning" not in again.stderr
    taken = fit(project, "half")
    assert (taken.returncode, "half exists" in taken.stderr) == (2, True)


def test_a_fit_imports_neither_the_compiler_nor_torch(tmp_path: Path) -> None:
    project = write_tiny(tmp_path)
    arguments = ["fit", "--target", "rpi4", "--profile", "float16", "--output", "half"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edgeopt", *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"onnxruntime", "scipy.optimize"} <= imported
    assert not imported & {"tvm", "torch", "edgeopt.compile"}


def test_the_difference_of_two_fits_names_weights_forms_and_bytes(tmp_path: Path) -> None:
    project = write_tiny(tmp_path)
    for name in ("float32", "int8"):
        assert fit(project, name, "--profile", name).returncode == 0
    done = edgeopt(project, "diff", "float32", "int8")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["plan", "float32", "int8-weights"] in lines
    assert ["table", "float32", "768", "kB", "int8-rows", "204", "kB"] in lines
    document = json.loads(edgeopt(project, "diff", "float32", "int8", "--json").stdout)
    assert document["schema_version"] == 1
    assert {each["weight"] for each in document["weights"]} == {"table", "hidden"}
    missing = edgeopt(project, "diff", "float32", "nothing")
    assert (missing.returncode, "edgeopt fit --output" in missing.stderr) == (2, True)


def test_targets_are_compared_and_one_that_cannot_is_a_row_too(tmp_path: Path) -> None:
    project = write_tiny(tmp_path)
    options = ("--profile", "float16", "--json")
    done = edgeopt(project, "plan", "--targets", "rpi4,rpi5", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["targets"]
    assert [(each["target"], each["plan"]) for each in found] == [
        ("rpi4", "float16"),
        ("rpi5", "float16"),
    ]
    assert found[1]["predicted_ms"] < found[0]["predicted_ms"]
    small = edgeopt(project, "plan", "--targets", "rpi4", "--ram", "1MB", *options)
    assert json.loads(small.stdout)["targets"][0]["plan"] is None
    for wrong in ((), ("--target", "rpi4", "--targets", "rpi5")):
        refused = edgeopt(project, "plan", *wrong)
        assert (refused.returncode, "plan needs a target" in refused.stderr) == (2, True)
