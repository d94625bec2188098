"""A lease that is taken over: by number, by force, on odd file systems, after odd ends."""

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board.lease import Tenancy, hold, kick_owner, parse_tenancy, read_tenancy
from edgeopt.board.local import LocalBoard
from edgeopt.board.owner import Owner, describe_owner
from edgeopt.errors import BoardBusy, LeaseLost
from tests.board.contract import is_alive

ROOT = PurePosixPath("~/deploy")


@pytest.fixture
def board(tmp_path: Path) -> LocalBoard:
    return LocalBoard(home=tmp_path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deploy" / "lease"


@pytest.fixture
def no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ln fail as it does on FAT; symbolic links are not used by a lease."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ln").write_text("#!/bin/sh\necho 'Operation not permitted' >&2\nexit 1\n")
    (tools / "ln").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")


def expire(file: Path) -> None:
    words = file.read_text().split(" ")
    file.write_text(" ".join([*words[:2], "1", *words[3:]]))


def test_every_holder_has_a_higher_number_than_the_one_before(
    board: LocalBoard, file: Path
) -> None:
    numbers = []
    for _ in range(3):
        with hold(board, ROOT, owner="x", seconds=100) as lease:
            numbers.append(lease.fence)
    (file.parent / "fence").write_text("torn\n")
    with hold(board, ROOT, owner="slow", seconds=100) as slow:
        numbers.append(slow.fence)
        (file.parent / "fence").unlink()
        expire(file)
        with hold(board, ROOT, owner="next", seconds=100) as after:
            assert after.fence == slow.fence + 1
    assert numbers == [1, 2, 3, 1]


def test_one_who_lost_it_can_run_and_write_nothing(
    board: LocalBoard, file: Path, tmp_path: Path
) -> None:
    (tmp_path / "sent").write_text("new")
    with hold(board, ROOT, owner="slow", seconds=100) as slow:
        done = slow.board.run(["sh", "-c", "cat; pwd; umask; exit 75"], stdin=b"in\n", timeout=9)
        # The command is the one that it would be without a lease.
        plain = board.run(["sh", "-c", "cat; pwd; umask; exit 75"], stdin=b"in\n", timeout=9)
        assert done == plain
        assert slow.board.run(["no-such-program"], timeout=9).status == 127
        slow.board.put(tmp_path / "sent", PurePosixPath("there"), timeout=9)
        expire(file)
        with hold(board, ROOT, owner="next", seconds=100) as after:
            with pytest.raises(LeaseLost, match="now it is held by next by"):
                slow.board.run(["touch", "written"], timeout=9)
            (tmp_path / "sent").write_text("newer")
            with pytest.raises(LeaseLost):
                slow.board.put(tmp_path / "sent", PurePosixPath("there"), timeout=9)
            after.confirm()
    assert (tmp_path / "there").read_text() == "new"
    assert not (tmp_path / "written").exists()


def test_commands_extend_a_lease_and_long_ones_are_told_of_meanwhile(
    board: LocalBoard, file: Path
) -> None:
    with hold(board, ROOT, owner="x", seconds=12) as lease:
        lease.board.run(["sleep", "13"], timeout=30)
        lease.confirm()
        first = int(file.read_text().split()[2])
        time.sleep(1.5)
        lease.board.run(["true"], timeout=30)
        assert int(file.read_text().split()[2]) > first


def test_a_kick_ends_the_commands_and_frees_the_board(board: LocalBoard, tmp_path: Path) -> None:
    told: list[BaseException] = []

    def work() -> None:
        try:
            with hold(board, ROOT, owner="x", seconds=100) as lease:
                # Another session, so that no process group holds both.
                script = "setsid sleep 970 & echo $! >pid; wait"
                lease.board.run(["sh", "-c", script], timeout=60)
                lease.board.run(["touch", "written"], timeout=60)
        except LeaseLost as error:
            told.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        time.sleep(0.02)
    pid = int((tmp_path / "pid").read_text())
    found = read_tenancy(board, ROOT)
    assert pid in [each.pid for each in found.processes if each.token == found.owner.token]
    assert kick_owner(board, ROOT, found.owner, by="me") == 2
    thread.join(30)
    assert len(told) == 1
    assert not is_alive(board, str(pid))
    after = read_tenancy(board, ROOT)
    assert (after.owner.held, after.fence, after.processes) == (False, 2, ())
    assert not (tmp_path / "written").exists()


def test_one_who_waits_gets_it_when_it_is_given_back(board: LocalBoard) -> None:
    told: list[Owner] = []
    outer = hold(board, ROOT, owner="first", seconds=100)
    outer.__enter__()
    threading.Timer(1.5, lambda: outer.__exit__(None, None, None)).start()
    with hold(board, ROOT, owner="second", seconds=100, wait=30, waiting=told.append) as lease:
        assert lease.fence == 2
    assert [each.what for each in told] == ["first"]


@pytest.mark.parametrize("text", ["", "\n", "abc", "abc boot x y z", "../x b 99 1 1 - {}\n"])
def test_a_file_that_no_one_wrote_like_that_holds_nothing(
    board: LocalBoard, file: Path, text: str
) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with hold(board, ROOT, owner="x", seconds=100) as lease:
        lease.confirm()


@pytest.mark.usefixtures("no_hard_links")
def test_without_hard_links_still_one_of_many_gets_it(board: LocalBoard, file: Path) -> None:
    assert shutil.which("ln") == str(file.parents[1] / "tools" / "ln")
    won, lost = [], []
    done, together = threading.Event(), threading.Barrier(6)

    def ask() -> None:
        together.wait()
        try:
            with hold(board, ROOT, owner="x", seconds=100) as lease:
                won.append(lease)
                done.wait(30)
        except BoardBusy as error:
            lost.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for each in threads:
        each.start()
    until = time.monotonic() + 20
    while len(won) + len(lost) < 6 and time.monotonic() < until:
        time.sleep(0.05)
    assert (len(won), len(lost)) == (1, 5), [str(each) for each in lost]
    won[0].renew(200)
    done.set()
    for each in threads:
        each.join()
    assert sorted(each.name for each in file.parent.iterdir()) == ["fence"]
    with hold(board, ROOT, owner="y", seconds=100) as after:
        assert after.fence == 2


@pytest.mark.usefixtures("no_hard_links")
def test_without_hard_links_a_stale_lease_is_taken_over_too(board: LocalBoard, file: Path) -> None:
    with hold(board, ROOT, owner="slow", seconds=100) as slow:
        expire(file)
        with hold(board, ROOT, owner="next", seconds=100) as after:
            with pytest.raises(LeaseLost):
                slow.confirm()
            after.confirm()


def test_every_script_runs_in_busybox_alone(
    board: LocalBoard, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox here; run: sudo apt-get install -y busybox-static")
    tools = tmp_path / "applets"
    tools.mkdir()
    subprocess.run([busybox, "--install", "-s", str(tools)], check=True)
    monkeypatch.setenv("PATH", str(tools))
    with hold(board, ROOT, owner="slow", seconds=100) as slow:
        assert slow.board.run(["readlink", "/proc/self/exe"], timeout=9).stdout.strip() == (
            busybox.encode()
        )
        mark = f"{slow.token}@{tmp_path}/deploy@"
        stray = subprocess.Popen(["sleep", "970"], env={"EDGEOPT_LEASE": mark})
        found = read_tenancy(board, ROOT)
        assert stray.pid in [each.pid for each in found.processes]
        assert "sleep 970" in found.processes[-1].command
        kick_owner(board, ROOT, found.owner, by="me")
        assert stray.wait(10) == -9
        with pytest.raises(LeaseLost):
            slow.board.run(["true"], timeout=9)
    with hold(board, ROOT, owner="slow", seconds=100) as slow:
        slow.renew(200)
        expire(file)
        with hold(board, ROOT, owner="next", seconds=100) as after:
            assert after.fence == 4
    assert sorted(each.name for each in file.parent.iterdir()) == ["fence"]


def test_what_a_board_says_of_an_owner_is_not_believed_blindly() -> None:
    assert describe_owner(b"") == Owner()
    found = describe_owner(b"9x abc 99999999999999999999 -3 {not json")
    assert (found.token, found.left_s, found.fence, found.held_s) == ("abc", 0, 0, 0)
    assert found.who == "somebody who has left no name"
    said = json.dumps(
        {"owner": "\x1b]0;title\x07", "user": "\x9b2J", "host": "h", "pid": 1, "started": 2}
    )
    spoken = describe_owner(f"9 a\x1b[2Jbc 1 3 {said}".encode())
    assert spoken.who == "]0;title by 2J@h, process 1"
    assert spoken.token == "a[2Jbc"
    [process] = parse_tenancy(b"process 7 abc sleep\x1b[31m 9").processes
    assert process.command == "sleep[31m 9"
    assert parse_tenancy(b"\xff\xfe\nprocess x\nfence \nholder\n") == Tenancy(Owner(), 0, ())
