"""edgeopt doctor: what a board lacks is named with the way to mend it, before anything is sent."""

import json
import platform
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from typer.testing import CliRunner

from edgeopt import cli
from edgeopt.board.local import LocalBoard
from edgeopt.cli.checkup import judge_board, judge_cache
from edgeopt.deploy import stage_bundle
from edgeopt.errors import ConfigError
from edgeopt.target import load_target
from tests.deploy.kit import APP, board_facts, make_bundle

TARGET = load_target("rpi5")
GOOD = {"machine": "aarch64", "features": TARGET.isa.features, "governors": ("performance",)}


def lacking(**changes: Any) -> dict[str, bool]:
    """Return what is not as it must be, and whether nothing can be deployed for it."""
    found = judge_board(TARGET, board_facts(**(GOOD | changes)))
    assert all(each.fix for each in found)
    return {each.part: each.required for each in found if not each.ok}


def test_a_board_that_is_as_its_target_says_lacks_nothing() -> None:
    assert lacking() == {}


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"machine": "arm"}, {"machine": True}),
        ({"features": ("fp", "asimd")}, {"instructions": True}),
        ({"glibc": "2.5"}, {"C library": True}),
        ({"glibc": ""}, {"C library": True}),
        ({"writable": False}, {"folder": True}),
        ({"executable": False}, {"folder": True}),
        ({"free": 1_000_000}, {"storage": False}),
        ({"ram_available": 1_000_000}, {"memory": False}),
        ({"governors": ("performance", "ondemand")}, {"clock": False}),
    ],
)
def test_what_a_board_lacks_is_named(changes: dict[str, Any], missing: dict[str, bool]) -> None:
    assert lacking(**changes) == missing


@pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64")
def test_doctor_looks_at_this_machine_as_a_board() -> None:
    done = CliRunner().invoke(
        cli.app, ["doctor", "--target", "x86-64", "--board", "local", "--json"]
    )
    assert done.exit_code == 0, done.stdout
    found = {each["part"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["board"]["found"].startswith("this machine answers")
    assert found["machine"]["ok"] is found["folder"]["ok"] is True


def test_doctor_says_why_a_board_cannot_be_reached_and_goes_on(tmp_path: Path) -> None:
    config = tmp_path / "config"
    # Port 1 of this machine: nothing listens there.
    config.write_text("Host desk\n  HostName 127.0.0.1\n  Port 1\n")
    options = ["--target", "rpi4", "--board", "pi@desk", "--ssh-config", str(config)]
    done = CliRunner().invoke(cli.app, ["doctor", *options])
    assert done.exit_code == 2
    assert "MISS  board: pi@desk: " in done.stdout
    assert "ok    compiler: " in done.stdout


def test_a_cache_that_has_grown_large_is_said_with_the_way_to_empty_it() -> None:
    found = judge_cache({"fit": 9_000_000_000, "compile": 2_000_000_000}, free=1 << 30)
    assert (found.ok, found.required) == (False, False)
    assert "11 GB of results" in found.found
    assert "edgeopt cache --clear" in found.fix
    assert judge_cache({"fit": 9_000_000_000}, free=0).ok


def test_a_board_without_its_kind_is_looked_at_for_all_that_needs_none(tmp_path: Path) -> None:
    options = ["doctor", "--board", "local", "--project", str(tmp_path)]
    done = CliRunner().invoke(cli.app, [*options, "--json"])
    assert done.exit_code == 0, done.output
    found = {each["part"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["kind of device"]["verdict"] == "warn"
    assert found["folder"]["verdict"] == found["programs"]["verdict"] == "pass"
    assert not {"machine", "instructions", "C library"} & set(found)
    assert "warn  kind of device: unknown" in CliRunner().invoke(cli.app, options).stdout


def test_the_kind_of_a_board_is_the_project_files(tmp_path: Path) -> None:
    boards = '[boards]\nx86-64 = "local"\n'
    (tmp_path / "edgeopt.toml").write_text(f'app = "a"\nmodel = "m.onnx"\n{boards}')
    options = ["doctor", "--board", "local", "--project", str(tmp_path), "--json"]
    done = CliRunner().invoke(cli.app, options)
    found = {each["part"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["machine"]["found"] == f"{platform.machine()}, the target's is x86_64"
    # Two kinds at one address: it tells neither.
    (tmp_path / "edgeopt.toml").write_text(f'app = "a"\nmodel = "m.onnx"\n{boards}rpi4 = "local"\n')
    done = CliRunner().invoke(cli.app, options)
    found = {each["part"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["kind of device"]["verdict"] == "warn"


@pytest.mark.parametrize("options", [["--board", "emulated"], ["--bundle", "out"]])
def test_what_cannot_be_looked_at_without_a_kind_is_a_mistake(options: list[str]) -> None:
    done = CliRunner().invoke(cli.app, ["doctor", *options])
    assert isinstance(done.exception, ConfigError)
    assert done.exception.fix == "add --target rpi4"


def test_a_fail_is_told_from_a_warning() -> None:
    found = judge_board(TARGET, board_facts(**(GOOD | {"writable": False, "free": 1_000_000})))
    verdicts = {each.part: each.verdict for each in found}
    assert (verdicts["folder"], verdicts["storage"], verdicts["memory"]) == ("fail", "warn", "pass")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64")
def test_status_says_what_was_under_way_when_somebody_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    board, root = LocalBoard(home=tmp_path), PurePosixPath(tmp_path / ".edgeopt")
    stage_bundle(make_bundle(tmp_path / "b"), board, facts=board_facts(), app=APP, root=root)
    options = ["--target", "x86-64", "--board", "local", "--app", APP]
    done = CliRunner().invoke(cli.app, ["status", *options])
    digest = next((tmp_path / ".edgeopt" / "apps" / APP / "releases").iterdir()).name
    assert done.exit_code == 0, done.output
    assert f"{APP} on this machine: trying\n" in done.stdout
    assert f"  {digest[:12]} is complete and not kept yet: its next deploy tries it" in done.stdout
    found = json.loads(CliRunner().invoke(cli.app, ["status", *options, "--json"]).stdout)
    assert (found["state"], found["subject"], found["proven"]) == ("trying", digest, True)
