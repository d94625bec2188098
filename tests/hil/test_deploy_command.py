"""edgeopt deploy as a user types it, on emulated boards with and without the dot product."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeopt.board.emulator import open_emulated, stop_board
from edgeopt.cli.places import cache_folder
from edgeopt.errors import ConfigError
from edgeopt.target import load_target
from tests.tiny import write_tiny

pytestmark = pytest.mark.hil

#: Names of our own, so that boards a user has running are left alone.
BOARDS = {"tested-a72": "rpi4", "tested-a76": "rpi5"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = write_tiny(tmp_path_factory.mktemp("project"))
    (folder / "targets").mkdir()
    shipped = Path(__file__).parents[2] / "targets"
    for name, origin in BOARDS.items():
        text = (shipped / f"{origin}.toml").read_text()
        text = text.replace(f'name = "{origin}"', f'name = "{name}"', 1)
        (folder / "targets" / f"{name}.toml").write_text(text)
    try:
        open_emulated(load_target("tested-a72", project=folder), cache=cache_folder()).close()
    except ConfigError as error:
        pytest.skip(f"no emulated board here: {error.what}; run: make board-packages")
    yield folder
    for name in BOARDS:
        stop_board(name, cache=cache_folder())


def edgeopt(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *arguments],
        cwd=project,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=500,
    )


def deploy(project: Path, target: str, *arguments: str) -> dict[str, Any]:
    done = edgeopt(project, "deploy", "--target", target, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize("target", sorted(BOARDS))
def test_a_board_runs_what_was_compiled_for_it_and_agrees_with_onnxruntime(
    project: Path, target: str
) -> None:
    report = deploy(project, target, "--profile", "float16")
    assert report["kind"] == "emulated"
    for row in report["rows"]:
        footprint, seen = row["footprint"], row["measurement"]
        predicted = sum(footprint[name] for name in ("weights_resident", "arena", "runtime"))
        assert predicted == pytest.approx(seen["memory"]["peak"], rel=0.05)
        assert row["parity"]["max_rel"] < 1e-4
        assert row["parity"]["metric_board"] == row["parity"]["metric_host"]


def test_instructions_repeat_from_run_to_run(project: Path) -> None:
    # The first timed inference repeats the warm-up's sample; others fault in rows of the table.
    first = deploy(project, "tested-a72", "--fresh")["rows"][-1]["measurement"]["samples_ns"][0]
    again = deploy(project, "tested-a72", "--fresh")["rows"][-1]["measurement"]["samples_ns"][0]
    assert again == pytest.approx(first, rel=0.02)


def test_a_second_deploy_finds_everything_and_only_smokes(project: Path) -> None:
    deploy(project, "tested-a72")
    report = deploy(project, "tested-a72")
    made = [stage["name"] for stage in report["stages"] if not stage["cached"]]
    assert made == ["smoke"]


def test_no_output_for_people_shows_milliseconds_of_an_emulated_board(project: Path) -> None:
    done = edgeopt(project, "deploy", "--target", "tested-a72")
    assert "instructions executed, not time" in done.stdout.splitlines()[0]
    assert " ms" not in done.stdout


def test_an_infeasible_budget_starts_no_upload(project: Path) -> None:
    before = edgeopt(project, "history", "--target", "tested-a72", "--json").stdout
    done = edgeopt(project, "deploy", "--target", "tested-a72", "--ram", "1MB")
    assert done.returncode == 3
    assert "--ram" in done.stderr
    assert edgeopt(project, "history", "--target", "tested-a72", "--json").stdout == before


def test_a_rolled_back_board_says_so(project: Path) -> None:
    deploy(project, "tested-a72")
    deploy(project, "tested-a72", "--profile", "float16", "--no-reference")
    done = edgeopt(project, "rollback", "--target", "tested-a72")
    assert done.returncode == 0, done.stderr
    history = json.loads(edgeopt(project, "history", "--target", "tested-a72", "--json").stdout)
    assert history["history"][-1]["action"] == "rollback"
