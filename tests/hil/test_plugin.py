"""The pytest plugin on an emulated board: what a user's tests see of one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeopt.board.emulator import open_emulated, stop_board
from edgeopt.cli.places import cache_folder
from edgeopt.errors import ConfigError
from edgeopt.target import load_target
from tests.tiny import write_tiny

pytestmark = pytest.mark.hil

TARGET = "tested-plugin"

TESTS = """
import pytest
from edgeopt.hil import MB, MILLION, assert_not_slower

@pytest.mark.needs("asimd", "ram>=512MB")
def test_budget(measurement):
    assert measurement.peak <= 32 * MB
    assert measurement.instructions <= 100 * MILLION
    assert not assert_not_slower(measurement, baseline="tiny").reasons

def test_latency(measurement):
    assert measurement.p95 < 30

@pytest.mark.needs("dotprod")
def test_dot_products(board):
    raise AssertionError

def test_a_model_and_itself(deploy, compare):
    found = compare(deploy(profile="int8"), deploy(profile="int8"))
    assert (found.verdict, found.reasons) == ("inconclusive", ())
    assert abs(found.ratio - 1) < 1e-3

def test_unpacking_codes_takes_instructions(deploy, compare):
    assert compare(deploy(profile="float32"), deploy(profile="int8")).verdict == "slower"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = write_tiny(tmp_path_factory.mktemp("project"))
    (folder / "targets").mkdir()
    text = (Path(__file__).parents[2] / "targets" / "rpi4.toml").read_text()
    text = text.replace('name = "rpi4"', f'name = "{TARGET}"', 1)
    (folder / "targets" / f"{TARGET}.toml").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_model.py").write_text(TESTS)
    try:
        open_emulated(load_target(TARGET, project=folder), cache=cache_folder()).close()
    except ConfigError as error:
        pytest.skip(f"no emulated board here: {error.what}; run: make board-packages")
    yield folder
    stop_board(TARGET, cache=cache_folder())


def run_tests(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "pytest", "-p", "edgeopt.pytest_plugin", "-ra"]
    argv += ["-p", "no:cacheprovider", "--board", TARGET, *arguments]
    return subprocess.run(
        argv, cwd=project, env=dict(os.environ), capture_output=True, text=True, timeout=500
    )


def test_a_target_without_a_board_is_tested_on_its_emulated_one(project: Path) -> None:
    first = run_tests(project, "-k", "budget", "--update-baselines")
    assert first.returncode == 0, first.stdout
    done = run_tests(project)
    assert done.returncode == 0, done.stdout
    assert "3 passed, 2 skipped" in done.stdout
    assert "an emulated board counts instructions, which is not a latency" in done.stdout
    assert "the board's processor has no dotprod" in done.stdout
    assert "baseline tiny: inconclusive: " in done.stdout
