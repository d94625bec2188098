"""Places of labgrid, by a stand-in for its client that keeps one place's lock in a file."""

import os
import subprocess
from pathlib import Path

import pytest

from edgeopt.board.labgrid import cycle_command, hold_place
from edgeopt.errors import BoardBusy, ConfigError

CLIENT = """#!/bin/sh
cd "${0%/*}"
echo "$*" >>log
[ "$1 $2" = "-p desk" ] || { echo "place $2 not found" >&2; exit 1; }
case $3 in
    acquire) [ ! -e taken ] || { echo "place desk is already acquired by lab/anna"; exit 1; }
        echo acquired place desk; : >taken ;;
    release) rm taken ;;
    power) [ -e taken ] || { echo "place desk is not acquired"; exit 1; } ;;
esac
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    client = tmp_path / "labgrid-client"
    client.write_text(CLIENT)
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_a_place_is_ours_while_it_is_used_and_its_power_with_it(lab: Path) -> None:
    assert subprocess.run(cycle_command("desk"), check=False).returncode == 1
    with hold_place("desk"):
        assert (lab / "taken").exists()
        assert subprocess.run(cycle_command("desk"), check=False).returncode == 0
    assert not (lab / "taken").exists()
    said = (lab / "log").read_text().splitlines()
    assert said[1:] == ["-p desk acquire", "-p desk power cycle", "-p desk release"]


def test_a_place_that_somebody_else_has_is_busy_and_is_not_released(lab: Path) -> None:
    (lab / "taken").touch()
    with pytest.raises(BoardBusy, match="acquired by lab/anna"), hold_place("desk"):
        pass
    assert (lab / "taken").exists()
    with pytest.raises(BoardBusy, match="not found"), hold_place("window"):
        pass


def test_a_body_that_fails_gives_the_place_back(lab: Path) -> None:
    with pytest.raises(ValueError, match="x"), hold_place("desk"):
        raise ValueError("x")
    assert not (lab / "taken").exists()


def test_without_labgrid_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"edgeopt\[labgrid\]"), hold_place("desk"):
        pass
