"""edgeopt bench --ab and edgeopt test --boards, on boards behind real OpenSSH servers."""

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.boards_kit import Boards, Host, boards
from tests.tiny import write_tiny

__all__ = ["boards"]

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]

TESTS = """
def test_the_model_runs(measurement):
    assert measurement.peak > 0

def test_home(board):
    print(board.run(["pwd"], timeout=30).stdout)
"""


@pytest.fixture
def host(tmp_path: Path, boards: Boards) -> Iterator[Host]:
    host = Host(write_tiny(tmp_path / "project"), boards.ssh_config)
    yield host
    host.leaves()


def test_two_plans_take_turns_and_nothing_of_them_is_left(host: Host, boards: Boards) -> None:
    board = boards.add(1)[0]
    deployed = host.types("deploy", "--target", "x86-64", "--board", board.name, "--json")
    digest = json.loads(deployed.stdout)["digest"]
    argv = ("bench", "--target", "x86-64", "--board", board.name, "--blocks", "4", "--json", "--ab")
    done = host.types(*argv, "float32", "float16")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["base_digest"], found["base"], found["other"]) == (digest, "float32", "float16")
    assert found["other_digest"] != digest
    assert found["comparison"]["count"] == 4
    assert found["comparison"]["low"] <= found["comparison"]["ratio"]
    assert found["verdict"] in {"faster", "slower", "inconclusive"}
    assert found["fence"] == 2
    # By its digest, against itself: nobody knows a difference larger than five times.
    same = host.types(*argv, digest[:12], digest[:12], "--self-test", "--tolerance", "99%")
    assert same.returncode == 0, same.stderr
    assert json.loads(same.stdout)["verdict"] == "inconclusive"
    assert json.loads(same.stdout)["self_test"]["count"] == 4
    apps = board.folder / ".edgeopt" / "apps"
    assert [each.name for each in apps.iterdir()] == ["tiny"]
    assert board.current("tiny") == digest


def test_two_plans_are_compared_on_several_boards_side_by_side(host: Host, boards: Boards) -> None:
    homes = boards.add(2)
    boards.name("absent", 1)
    names = [*(each.name for each in homes), "absent"]
    lines = "".join(f'[[board]]\naddress = "{each}"\n' for each in names)
    fleet = host.project / "fleet.toml"
    fleet.write_text(f'target = "x86-64"\n{lines}')
    argv = ("bench", "--target", "x86-64", "--blocks", "4", "--boards", "fleet.toml")
    done = host.types(*argv, "--json", "--ab", "float32", "float16")
    assert done.returncode == 6, done.stderr
    found = json.loads(done.stdout)["boards"]
    assert list(found) == names
    for each in homes:
        assert found[each.name]["comparison"]["count"] == 4
        assert found[each.name]["verdict"] in {"faster", "slower", "inconclusive"}
        assert list((each.folder / ".edgeopt" / "apps").iterdir()) == []
    assert found["absent"]["error"]
    both = host.types(*argv, "--board", homes[0].name, "--ab", "float32", "float16")
    assert (both.returncode, "exclude" in both.stderr) == (2, True)
    none = ("bench", "--target", "rpi4", "--boards", "fleet.toml", "--ab", "float32", "float16")
    assert "no board of the kind rpi4" in host.types(*none).stderr


def test_what_cannot_be_compared_is_said_before_any_board_is_asked(host: Host) -> None:
    argv = ("bench", "--target", "x86-64", "--board", "nowhere", "--ab")
    unknown = host.types(*argv, "0123456789ab", "float32")
    assert (unknown.returncode, "compiled here" in unknown.stderr) == (2, True)
    misspelt = host.types(*argv, "float33", "float32")
    assert (misspelt.returncode, "did you mean 'float32'" in misspelt.stderr) == (2, True)
    share = host.types(*argv, "float32", "float16", "--tolerance", "much")
    assert (share.returncode, "--tolerance" in share.stderr) == (2, True)


def test_a_projects_tests_run_on_all_boards_at_once_with_a_line_for_each(
    host: Host, boards: Boards
) -> None:
    homes = boards.add(2)
    boards.name("absent", 1)
    (host.project / "test_model.py").write_text(TESTS)
    fleet = host.project / "fleet.toml"
    lines = "".join(
        f'[[board]]\naddress = "{each}"\n' for each in (*(h.name for h in homes), "absent")
    )
    fleet.write_text(f'target = "x86-64"\n{lines}')
    done = host.types("test", "--boards", "fleet.toml", "--json")
    assert done.returncode == 6, done.stdout + done.stderr
    rows = {each["label"]: each for each in json.loads(done.stdout)["boards"]}
    assert list(rows) == ["board0", "board1", "absent"]
    for each in homes:
        row = rows[each.name]
        assert (row["result"], row["tests"], row["failed"], row["errors"]) == ("passed", 2, 0, 0)
        assert int(row["peak"]) > 0
        assert row["fence"] > 0
        assert row["median"].endswith(" ns")
        # What the tests deployed is not left there.
        assert list((each.folder / ".edgeopt" / "apps").iterdir()) == []
    assert rows["absent"]["result"] == "board gone"
    (host.project / "test_model.py").write_text("def test_no(board):\n    assert False\n")
    failed = host.types("test", "--boards", "fleet.toml")
    assert failed.returncode == 1
    assert failed.stdout.count("FAILED") == 2
    assert "assert False" in failed.stderr


def test_all_is_every_board_that_the_project_names(host: Host, boards: Boards) -> None:
    (home,) = boards.add(1)
    boards.name("absent", 1)
    file = host.project / "edgeopt.toml"
    named = f'[boards]\nx86-64 = "{home.name}"\nrpi4 = "absent"\n'
    file.write_text(f"{file.read_text()}\n{named}")
    (host.project / "test_model.py").write_text(
        "def test_home(board):\n    assert board.run(['pwd'], timeout=30).status == 0\n"
    )
    done = host.types("test", "--boards", "all", "--json")
    assert done.returncode == 6, done.stdout + done.stderr
    rows = {each["label"]: each for each in json.loads(done.stdout)["boards"]}
    assert list(rows) == ["x86-64", "rpi4"]
    assert (rows["x86-64"]["result"], rows["x86-64"]["tests"]) == ("passed", 1)
    assert rows["rpi4"]["result"] == "board gone"
    file.write_text(file.read_text().replace('rpi4 = "absent"\n', ""))
    assert host.types("test", "--boards", "all").returncode == 0


def test_without_boards_the_fix_is_named(host: Host) -> None:
    done = host.types("test")
    assert (done.returncode, "--boards fleet.toml" in done.stderr) == (2, True)
    argv = [sys.executable, "-m", "edgeopt", "test", "--help"]
    assert "--boards" in subprocess.run(argv, capture_output=True, text=True).stdout
