"""One board, many users, over real OpenSSH servers: who holds it, who is kicked, who comes next."""

import json
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board.lease import hold, kick_owner, read_tenancy
from edgeopt.board.ssh import open_ssh
from edgeopt.errors import BoardBusy, LeaseLost
from edgeopt.trial import ROOT
from tests.host.boards_kit import Boards, Home, Host, boards
from tests.tiny import write_tiny

__all__ = ["boards"]

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]

#: Its program runs long enough to be seen: a million inferences of some microseconds.
SLOW = """
name = "slow"
title = "Measures for a long time"
methods = ["float32"]
[bench]
iterations = 1000000
"""

DEPLOY = ("deploy", "--target", "x86-64", "--board")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = write_tiny(tmp_path / "project")
    (folder / "profiles").mkdir()
    (folder / "profiles" / "slow.toml").write_text(SLOW)
    return folder


@pytest.fixture
def board(boards: Boards) -> Home:
    return boards.add(1)[0]


@pytest.fixture
def host(project: Path, boards: Boards) -> Iterator[Host]:
    host = Host(project, boards.ssh_config)
    yield host
    host.leaves()


def stop_program(board: Home, deploy: "subprocess.Popen[str]") -> int:
    """Return the device program's process as soon as it measures on this board; it stops there."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert deploy.poll() is None, deploy.communicate()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                link = (entry / "exe").readlink()
            except OSError:
                continue
            if link.name == "edgeopt-run" and board.folder in link.parents:
                os.kill(int(entry.name), signal.SIGSTOP)
                return int(entry.name)
        time.sleep(0.02)
    raise AssertionError("the device program was never seen")


def is_running(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def ended(process: "subprocess.Popen[str]") -> str:
    """Return what it said on stderr in the end."""
    _, said = process.communicate(timeout=120)
    return said


def objects_of(board: Home) -> dict[str, tuple[int, int]]:
    """What lies below the deploy folder, with sizes and times of change."""
    root = board.folder / ".edgeopt"
    found = {}
    for path in root.rglob("*"):
        state = path.lstat()
        found[str(path.relative_to(root))] = (state.st_size, state.st_ctime_ns)
    return found


def test_who_tells_the_owner_and_what_runs_and_kick_ends_it(host: Host, board: Home) -> None:
    free = host.types("board", "who", board.name)
    assert (free.returncode, free.stdout) == (0, "board0 is free (last fence 0)\n")
    assert not (board.folder / ".edgeopt").exists()
    first = host.begins(*DEPLOY, board.name, "--profile", "slow")
    program = stop_program(board, first)
    facts = json.loads(host.types("board", "who", board.name, "--json").stdout)
    assert facts["owner"]["what"] == "edgeopt deploy tiny"
    assert facts["owner"]["pid"] == first.pid
    assert facts["owner"]["fence"] == facts["fence"] == 1
    assert 0 <= facts["owner"]["held_s"] < 60 < facts["owner"]["left_s"]
    assert program in [each["pid"] for each in facts["processes"]]
    busy = host.types(*DEPLOY, board.name)
    assert busy.returncode == 8
    assert f"edgeopt deploy tiny by {facts['owner']['user']}@" in busy.stderr
    assert "edgeopt board kick board0" in busy.stderr
    asked = host.types("board", "kick", board.name)
    assert (asked.returncode, is_running(program)) == (2, True)
    assert "add --yes" in asked.stderr
    kicked = host.types("board", "kick", board.name, "--yes")
    assert kicked.returncode == 0, kicked.stderr
    assert kicked.stdout.endswith("kicked; the board is free (fence 2)\n")
    assert "warning" not in kicked.stderr
    assert not is_running(program)
    assert "lease was lost" in ended(first)
    assert first.returncode == 8
    assert board.current("tiny") == ""
    after = host.types(*DEPLOY, board.name, "--json")
    assert json.loads(after.stdout)["fence"] == 3
    assert board.current("tiny") == json.loads(after.stdout)["digest"]


def test_escape_sequences_of_a_board_reach_no_terminal(host: Host, board: Home) -> None:
    root = board.folder / ".edgeopt"
    root.mkdir(mode=0o700)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    evil = {"owner": "\x1b]0;title\x07\x9b2J", "user": "\x1b[31m", "host": "h", "pid": 1}
    up = int(float(Path("/proc/uptime").read_text().split()[0]))
    said = json.dumps(evil | {"started": 1})
    (root / "lease").write_text(f"{'a' * 32} {boot} {up + 600} 5 {up} - {said}\n")
    deploys = (*DEPLOY, board.name, "--wait", "1s")
    for asked in (("board", "who", board.name), deploys, ("board", "kick", board.name, "--yes")):
        done = host.types(*asked)
        shown = done.stdout + done.stderr
        assert "]0;title" in shown, shown
        assert [each for each in shown if each != "\n" and not each.isprintable()] == []


def test_a_host_that_stood_still_writes_nothing_once_another_has_taken_over(
    host: Host, board: Home
) -> None:
    stale = host.begins(*DEPLOY, board.name, "--profile", "slow")
    program = stop_program(board, stale)
    os.kill(stale.pid, signal.SIGSTOP)
    other = Host(host.project, host.ssh_config, name="other")
    busy = other.types(*DEPLOY, board.name)
    assert (busy.returncode, board.current("tiny")) == (8, "")
    # As if its time had passed: fifteen minutes without a command.
    lease = board.folder / ".edgeopt" / "lease"
    words = lease.read_text().split(" ")
    lease.write_text(" ".join([*words[:2], "1", *words[3:]]))
    next_one = other.types(*DEPLOY, board.name, "--json")
    assert next_one.returncode == 0, next_one.stderr
    assert json.loads(next_one.stdout)["fence"] == 2
    assert not is_running(program)
    before = objects_of(board)
    os.kill(stale.pid, signal.SIGCONT)
    assert "lease was lost" in ended(stale)
    assert stale.returncode == 8
    assert objects_of(board) == before


def test_a_host_killed_in_the_middle_is_followed_within_half_a_minute(
    host: Host, board: Home
) -> None:
    killed = host.begins(*DEPLOY, board.name, "--profile", "slow")
    program = stop_program(board, killed)
    killed.kill()
    killed.communicate()
    # Another machine cannot see that the process has ended: it sees the connection's end.
    other = Host(host.project, host.ssh_config, name="other")
    begun = time.monotonic()
    follower = other.types(*DEPLOY, board.name, "--wait", "2min", "--json")
    assert follower.returncode == 0, follower.stderr
    assert "waiting for edgeopt deploy tiny by" in follower.stderr
    took, begun = time.monotonic() - begun, time.monotonic()
    assert other.types(*DEPLOY, board.name, "--json").returncode == 0
    # Beyond what a deploy takes: 30 s of grace, and the look that is at most 10 s later.
    assert took - (time.monotonic() - begun) < 60
    assert json.loads(follower.stdout)["fence"] == 2
    assert not is_running(program)


def test_waiting_ends_at_its_time(host: Host, board: Home) -> None:
    live = open_ssh(board.name, ssh_config=host.ssh_config)
    with hold(live, ROOT, owner="the night's soak test", seconds=600):
        begun = time.monotonic()
        done = host.types(*DEPLOY, board.name, "--wait", "3s", "--no-reference")
        assert done.returncode == 8
        assert "the night's soak test by" in done.stderr
        assert "3 s were waited for it" in done.stderr
        assert 3 <= time.monotonic() - begun < 60
    live.close()
    assert host.types(*DEPLOY, board.name, "--wait", "3").returncode == 2


def test_an_upload_under_way_is_cut_when_its_lease_is_taken(
    host: Host, board: Home, tmp_path: Path
) -> None:
    # Several seconds' worth: a kick takes one, and must not come too late.
    size = 512 << 20
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    there = board.folder / "large"
    first, second = (open_ssh(board.name, ssh_config=host.ssh_config) for _ in range(2))
    with hold(first, ROOT, owner="first", seconds=600) as lease:
        cut_at: list[int] = []

        def kick() -> None:
            owner = read_tenancy(second, ROOT).owner
            while not there.exists() or there.stat().st_size < 1 << 20:
                time.sleep(0.001)
            kick_owner(second, ROOT, owner, by="kick")
            cut_at.append(there.stat().st_size)

        kicking = threading.Thread(target=kick)
        kicking.start()
        with pytest.raises(LeaseLost):
            lease.board.put(tmp_path / "large", PurePosixPath(there), timeout=120)
        kicking.join()
        time.sleep(0.5)
        assert there.stat().st_size == cut_at[0] < size
        with pytest.raises(LeaseLost):
            lease.board.run(["touch", "written"], timeout=30)
        assert not (board.folder / "written").exists()
    first.close()
    second.close()


def test_kicking_one_who_has_gone_meanwhile_does_not_hit_the_next(host: Host, board: Home) -> None:
    first, second = (open_ssh(board.name, ssh_config=host.ssh_config) for _ in range(2))
    with hold(first, ROOT, owner="first", seconds=600):
        shown = read_tenancy(second, ROOT).owner
    with hold(first, ROOT, owner="next", seconds=600) as lease:
        with pytest.raises(BoardBusy, match="next by"):
            kick_owner(second, ROOT, shown, by="kick")
        lease.confirm()
    first.close()
    second.close()
