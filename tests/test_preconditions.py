"""edgeopt doctor on a board's deploy folder, its holder, its programs and its time."""

import dataclasses
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board.lease import Tenancy
from edgeopt.board.local import LocalBoard
from edgeopt.board.owner import Owner
from edgeopt.cli.preconditions import (
    Tools,
    examine_place,
    judge_survey,
    judge_tenancy,
    judge_tools,
    parse_tools,
    read_tools,
)
from edgeopt.deploy import Survey, survey_board
from edgeopt.errors import BoardIncompatible
from tests.deploy.kit import DyingBoard

APP = "questions"


def survey(root: Path) -> Survey:
    return survey_board(LocalBoard(), root=PurePosixPath(root), app=APP)


def test_a_board_that_can_be_deployed_to_has_all_of_it_and_is_left_as_it_was(
    tmp_path: Path,
) -> None:
    root = tmp_path / "board"
    found = examine_place(LocalBoard(), PurePosixPath(root), APP)
    assert [each.part for each in found if each.verdict == "fail"] == []
    assert {"lease", "deploy folder", "inodes", "programs", "file transfer", "time"} <= {
        each.part for each in found if each.ok
    }
    assert not root.exists()


@pytest.mark.parametrize("where", ["objects", "apps", f"apps/{APP}"])
def test_a_link_in_the_way_is_named(tmp_path: Path, where: str) -> None:
    link = tmp_path / "board" / where
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path)
    (found,) = (each for each in judge_survey(survey(tmp_path / "board")) if not each.ok)
    assert (found.part, found.verdict, found.fix) == ("deploy folder", "fail", f"remove {link}")


@pytest.mark.parametrize(
    ("changes", "part"),
    [({"free_inodes": 63}, "inodes"), ({"lacks": ("sha256sum",)}, "programs")],
)
def test_what_a_deploy_would_lack_is_a_fail(
    tmp_path: Path, changes: dict[str, object], part: str
) -> None:
    whole = survey(tmp_path)
    assert all(each.ok for each in judge_survey(whole))
    lacking = dataclasses.replace(whole, **changes)  # type: ignore[arg-type]
    assert [each.part for each in judge_survey(lacking) if each.verdict == "fail"] == [part]


def test_a_board_that_tells_no_inodes_lacks_none(tmp_path: Path) -> None:
    silent = dataclasses.replace(survey(tmp_path), free_inodes=None)
    assert all(each.ok for each in judge_survey(silent))


def test_who_holds_a_board_is_a_warning() -> None:
    owner = Owner("t", "edgeopt deploy other", "ada", "desk", 7, left_s=600)
    held = judge_tenancy(Tenancy(owner, 4, ()))
    assert held.verdict == "warn"
    assert "edgeopt deploy other by ada@desk, process 7, for at most 600 s" in held.found
    assert judge_tenancy(Tenancy(Owner(), 4, ())).verdict == "pass"


def test_a_board_that_moves_no_files_is_a_fail(tmp_path: Path) -> None:
    class Mute(DyingBoard):
        def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
            raise BoardIncompatible("the server has no SFTP", fix="install it")

    found = examine_place(Mute(LocalBoard()), PurePosixPath(tmp_path), APP)
    moved = next(each for each in found if each.part == "file transfer")
    assert (moved.verdict, moved.found, moved.fix) == (
        "fail",
        "the server has no SFTP",
        "install it",
    )


def test_a_clock_that_is_off_and_a_missing_verifier_are_warnings() -> None:
    for tools, expected in (
        (Tools(True, 1300), ["pass", "pass"]),
        (Tools(True, 1301), ["pass", "warn"]),
        (Tools(False, 699), ["warn", "warn"]),
        (Tools(False, None), ["warn", "warn"]),
    ):
        assert [each.verdict for each in judge_tools(tools, now=1000.0)] == expected
    assert judge_tools(Tools(True, 1301), now=1000.0)[1].found == "+301 s of this machine's"


@pytest.mark.parametrize(
    ("text", "tools"),
    [
        ("keygen\ntime 12", Tools(True, 12)),
        ("time 12", Tools(False, 12)),
        ("time", Tools(False, None)),
        ("keygen\ntime -3", Tools(True, None)),
        ("sh: not found", Tools(False, None)),
    ],
)
def test_what_a_board_tells_of_its_tools_is_read_or_is_not_there(text: str, tools: Tools) -> None:
    assert parse_tools(text.splitlines()) == tools


def test_tools_are_looked_for_on_the_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_tools(LocalBoard()).time is not None
    (tmp_path / "sh").symlink_to("/bin/sh")
    for name, there in (("date", False), ("ssh-keygen", True)):
        (tmp_path / name).write_text("#!/bin/sh\necho 5\n")
        (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert read_tools(LocalBoard()) == Tools(there, 5)
