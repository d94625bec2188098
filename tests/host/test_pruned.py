"""A share of the arithmetic cut: planned, deployed and reported, as a user types it."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeopt.cli.places import cache_folder
from edgeopt.model.graph import initializers
from edgeopt.model.sparse import find_sparse
from tests.compress.test_sparsity import pruned
from tests.graphs import text_model
from tests.tiny import write_tiny

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEOPT_CACHE_DIR", str(cache_folder()))
    monkeypatch.setenv("HOME", str(tmp_path))
    return write_tiny(tmp_path / "project")


def types(project: Path, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", verb, "--target", "x86-64", *options],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_half_of_the_neurons_are_cut_and_the_rest_deployed(project: Path) -> None:
    done = types(project, "deploy", "--prune", "50%", "--max-drop", "50%", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kept"]
    assert [row["plan"] for row in report["rows"]] == ["float32", "float32, pruned"]
    # Drops count from the model as it was.
    reference, chosen = report["rows"]
    assert reference["metric_host"] == 1.0
    assert report["tried"][0]["drop"] == pytest.approx(1.0 - chosen["metric_host"])
    pruning = report["pruning"]
    assert pruning["flops_after"] * 2 == pruning["flops_before"]
    (entry,) = pruning["entries"]
    assert (entry["cut"]["group"], entry["kind"], entry["units"]) == ("hidden", "neurons", 128)
    assert len(entry["cut"]["kept"]) == 64
    page = next((project / ".edgeopt").rglob("x86-64.html")).read_text()
    assert "pruned: " in page
    assert "neurons" in page


def test_pruning_goes_with_any_profile_and_is_shown(project: Path) -> None:
    done = types(project, "plan", "--profile", "int8", "--prune", "25%", "--max-drop", "50%",
                 "--layers")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "int8-weights, pruned" in done.stdout
    assert ["hidden", "neurons", "128", "96"] in [
        line.split()[:4] for line in done.stdout.splitlines()
    ]


def test_the_profile_writes_a_smaller_model_that_any_runtime_reads(project: Path) -> None:
    done = types(project, "compile", "--profile", "pruned", "--max-drop", "50%", "-o", "out")
    assert done.returncode == 0, done.stderr
    model = onnx.load(project / "out" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
    assert shapes["hidden"] == (64, 64)
    assert shapes["bias"] == (64,)
    assert shapes["head"] == (64, 4)


def test_what_is_lost_counts_against_the_budget(project: Path) -> None:
    done = types(project, "plan", "--prune", "75%", "--max-drop", "0.5%")
    assert done.returncode == 3
    assert "accuracy drop" in done.stderr


@pytest.mark.parametrize(
    ("share", "why"),
    [("half", "cannot be read"), ("100%", "something of the model"), ("99.9%", "fewest units")],
)
def test_a_share_that_cannot_be_cut_is_refused(project: Path, share: str, why: str) -> None:
    done = types(project, "plan", "--prune", share)
    assert done.returncode == 2
    assert why in done.stderr


def test_a_pruned_fit_is_made_again_from_its_plan(project: Path) -> None:
    options = ("--profile", "int8", "--prune", "50%", "--max-drop", "60%")
    done = types(project, "fit", *options, "-o", "first")
    assert done.returncode == 0, done.stderr
    # The plan alone says what to cut: nothing asks for it.
    again = types(project, "fit", "--plan", "first", "-o", "again")
    assert again.returncode == 0, again.stderr
    assert "warning" not in again.stderr
    first, second = ((project / each / "model.onnx").read_bytes() for each in ("first", "again"))
    assert first == second
    sizes = {each.name: tuple(each.dims) for each in onnx.load_from_string(first).graph.initializer}
    assert sizes["hidden.int8"] == (64, 64)


CLIMBING = """
name = "climbing"
title = "Cut where nothing else does it"
methods = ["float32"]
mixed = false
prune_most = "50%"

[budget]
accuracy_drop = "50%"
"""


def test_where_no_plan_meets_the_budget_operations_are_cut_as_far_as_allowed(project: Path) -> None:
    profile = project / "climbing.toml"
    profile.write_text(CLIMBING)
    options = ("--profile", str(profile), "--json")
    whole = json.loads(types(project, "plan", *options).stdout)
    assert whole.get("pruning") is None
    flash = whole["fit"]["chosen"]["footprint"]["flash"]
    # A third of the hidden neurons is 11 kB.
    done = types(project, "deploy", *options, "--flash", f"{(flash - 6_000) // 1000}kB")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["plan"] for row in report["rows"]] == ["float32", "float32, pruned"]
    pruning = report["pruning"]
    assert pruning["flops_after"] <= 0.7 * pruning["flops_before"]
    assert report["rows"][1]["footprint"]["flash"] <= flash - 6_000
    # More is cut only where less is not enough.
    assert "30% of the operations left out" in done.stderr
    assert "50% of the operations left out" not in done.stderr
    refused = types(project, "deploy", *options, "--flash", "100kB")
    assert refused.returncode == 3
    assert "the limit on flash binds" in refused.stderr


def test_what_cannot_be_cut_is_said_with_the_budget_that_is_not_met(project: Path) -> None:
    profile = project / "climbing.toml"
    profile.write_text(CLIMBING)
    settings = project / "edgeopt.toml"
    # Without a task there is nothing that the rest could be fitted on.
    settings.write_text(settings.read_text().partition("[task]")[0])
    done = types(project, "plan", "--profile", str(profile), "--flash", "100kB")
    assert (done.returncode, "the limit on flash binds" in done.stderr) == (3, True)


def test_a_quick_search_says_that_another_may_cut(project: Path) -> None:
    profile = project / "climbing.toml"
    profile.write_text(CLIMBING)
    done = types(
        project, "plan", "--profile", str(profile), "--flash", "100kB", "--effort", "quick"
    )
    assert done.returncode == 3
    assert "let up to 50% of the operations be cut: leave --effort quick out" in done.stderr
    assert "operations left out" not in done.stderr


def test_a_fit_cuts_where_deploy_does_and_two_are_told_apart(project: Path) -> None:
    profile = project / "climbing.toml"
    profile.write_text(CLIMBING)
    options = ("--profile", str(profile))
    whole = types(project, "fit", *options, "-o", "whole")
    assert whole.returncode == 0, whole.stderr
    flash = json.loads((project / "whole" / "fit.json").read_text())["flash"]
    less = ("--flash", f"{(flash - 6_000) // 1000}kB")
    done = types(project, "fit", *options, *less, "-o", "cut")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("float32, pruned for x86-64")
    told = subprocess.run(
        [sys.executable, "-m", "edgeopt", "diff", "whole", "cut"],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert told.returncode == 0, told.stderr
    (cut,) = (line.split() for line in told.stdout.splitlines() if line.startswith("hidden "))
    assert (cut[1], cut[3]) == ("all", "-")
    assert 64 <= int(cut[2]) <= 90


def test_a_model_that_was_cut_and_still_does_not_fit_is_named_so(project: Path) -> None:
    done = types(project, "plan", "--profile", "int8", "--prune", "50%", "--flash", "100kB")
    assert done.returncode == 3
    assert ", pruned, needs" in done.stderr


def test_nothing_is_cut_for_a_pace_that_may_be_stale(project: Path) -> None:
    profile = project / "climbing.toml"
    profile.write_text(CLIMBING)
    first = types(project, "deploy", "--profile", str(profile), "--json")
    assert first.returncode == 0, first.stderr
    report = next((project / ".edgeopt").rglob("x86-64.json"))
    facts = json.loads(report.read_text())
    # As if the machine had been busy beyond measure then.
    report.write_text(json.dumps(facts | {"pace": 1e9}))
    again = types(project, "deploy", "--profile", str(profile), "--latency", "10s", "--json")
    # A machine that is busy now ends it with 12, after the plan was chosen and run.
    assert again.returncode in (0, 12), again.stderr
    assert "of the operations left out" not in again.stderr
    assert "measure" in again.stderr


def test_zeros_that_save_nothing_are_told_with_what_they_would_take(tmp_path: Path) -> None:
    pruned(tmp_path, 0.7)
    done = types(tmp_path, "plan", "--model", "pruned.onnx")
    assert done.returncode == 0, done.stderr
    assert "warning: dead compression: 70% of the values of 'mix' are zero" in done.stdout
    assert "they take 8.19 kB all the same (as CSR 3.21 kB" in done.stdout


def without_blocks(folder: Path, share: float) -> Path:
    """Set blocks of 16 columns of one matrix to zero, as other tools prune."""
    loaded = onnx.load(text_model(folder).path)
    tensor = initializers(loaded.graph)["mix"]
    values = numpy_helper.to_array(tensor).copy().reshape(32, 4, 16)
    values[np.random.default_rng(0).random((32, 4)) < share] = 0
    tensor.CopyFrom(numpy_helper.from_array(values.reshape(32, 64), "mix"))
    onnx.save(loaded, folder / "blocks.onnx")
    return folder / "blocks.onnx"


def test_blocks_of_zeros_are_not_pushed_and_the_ledger_says_so(tmp_path: Path) -> None:
    without_blocks(tmp_path, 0.75)
    done = types(tmp_path, "plan", "--model", "blocks.onnx", "--layers", "--json")
    assert done.returncode == 0, done.stderr
    (line,) = (each for each in json.loads(done.stdout)["ledger"] if each["weight"] == "mix")
    assert line["form"] == "float32-sparse of 16"
    assert line["after"] < 0.5 * line["before"]
    assert "of its blocks of 16 columns are zeros, which are neither stored nor" in line["reason"]
    shown = types(tmp_path, "plan", "--model", "blocks.onnx")
    assert "dead compression" not in shown.stdout
    # Few enough to be slower on some cores: told, and not stored so unasked.
    without_blocks(tmp_path, 0.3)
    fewer = types(tmp_path, "plan", "--model", "blocks.onnx")
    assert "warning: dead compression: " in fewer.stdout
    assert "float32-sparse among the profile's methods would make it" in fewer.stdout


SPARSIFYING = """
name = "sparsifying"
title = "Half of the blocks zero"
methods = ["float16-sparse"]
mixed = false

[sparsify]
pattern = "blocks"
criterion = "wanda"
threshold = "share"
value = 0.5
refit = true

[budget]
accuracy_drop = "60%"
"""


def test_a_profile_sets_blocks_to_zero_and_its_plan_is_replayed(project: Path) -> None:
    profile = project / "sparsifying.toml"
    profile.write_text(SPARSIFYING)
    options = ("--profile", str(profile))
    done = types(project, "deploy", *options, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kept"]
    forms = {each["weight"]: each["form"] for each in report["ledger"]}
    assert forms["hidden"] == "float16-sparse of 16, 50% of blocks zero (wanda)"
    done = types(project, "fit", *options, "-o", "first")
    assert done.returncode == 0, done.stderr
    again = types(project, "fit", "--plan", "first", "-o", "again")
    assert again.returncode == 0, again.stderr
    first, second = ((project / each / "model.onnx").read_bytes() for each in ("first", "again"))
    assert first == second
    matrix = next(iter(find_sparse(onnx.load_from_string(first).graph).values()))
    assert matrix.share == 0.5


def test_what_no_method_leaves_out_is_not_set_to_zero(project: Path) -> None:
    profile = project / "sparsifying.toml"
    profile.write_text(SPARSIFYING.replace("float16-sparse", "float16"))
    done = types(project, "plan", "--profile", str(profile))
    assert done.returncode == 2
    assert "[sparsify] needs one of the methods" in done.stderr
