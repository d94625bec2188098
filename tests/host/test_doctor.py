"""edgeopt doctor in a project whose model was compiled and deployed, as a user types it."""

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edgeopt import cli
from edgeopt.board.lease import hold
from edgeopt.board.ssh import open_ssh
from edgeopt.trial import ROOT
from tests.conftest import Sshd
from tests.host.boards_kit import Boards, boards
from tests.host.test_deploy_command import User, _shared_toolchain, report_of

__all__ = ["_shared_toolchain", "boards"]

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]


def test_doctor_scans_what_the_last_deploy_sent_without_being_told_where_it_is(
    tmp_path: Path,
) -> None:
    user = User(tmp_path)
    digest = report_of(user.types("deploy", "--board", "local", "--no-reference", "--json"))[
        "digest"
    ]
    done = user.types("doctor", "--board", "local", "--json")
    assert done.returncode == 0, done.stderr
    found = {each["part"]: each for each in json.loads(done.stdout)["findings"]}
    for program in ("model.so", "edgeopt-run"):
        for part in ("", ": symbols", ": instructions"):
            each = found[f"{str(digest)[:12]}/{program}{part}"]
            assert each["ok"], each
    assert "avx" in found[f"{str(digest)[:12]}/model.so: instructions"]["found"]


def looked_at(board: str, config: Path, tmp_path: Path) -> dict[str, Any]:
    options = ["--board", board, "--ssh-config", str(config), "--project", str(tmp_path)]
    done = CliRunner().invoke(cli.app, ["doctor", *options, "--json"])
    return {each["part"]: each for each in json.loads(done.stdout)["findings"]}


def test_doctor_says_who_holds_a_board_and_what_is_in_the_way(
    tmp_path: Path, boards: Boards
) -> None:
    (board,) = boards.add(1)
    found = looked_at(board.name, boards.ssh_config, tmp_path)
    assert found["lease"]["verdict"] == found["file transfer"]["verdict"] == "pass"
    assert list(board.folder.iterdir()) == []
    live = open_ssh(board.name, ssh_config=boards.ssh_config)
    with hold(live, ROOT, owner="the night's soak test", seconds=600):
        (board.folder / ".edgeopt" / "objects").symlink_to(tmp_path)
        found = looked_at(board.name, boards.ssh_config, tmp_path)
    live.close()
    assert found["lease"]["verdict"] == "warn"
    assert "held by the night's soak test by" in found["lease"]["found"]
    assert found["deploy folder"]["verdict"] == "fail"
    assert f"{board.folder}/.edgeopt/objects" in found["deploy folder"]["fix"]


def test_doctor_names_a_server_that_moves_no_files(
    tmp_path: Path, start_sshd: Callable[..., Sshd]
) -> None:
    config = start_sshd("Subsystem sftp /nonexistent").write_config(tmp_path / "config")
    found = looked_at("board", config, tmp_path)
    assert found["board"]["verdict"] == "pass"
    assert found["file transfer"]["verdict"] == "fail"
