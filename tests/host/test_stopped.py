"""Hosts that end in the middle, over real OpenSSH servers: the user stops one, or it is killed."""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgeopt.board.lease import hold
from edgeopt.board.ssh import open_ssh
from tests.deploy.kit import assert_whole, deploy, leftovers, link_of, make_bundle
from tests.deploy.test_states import ROOT, TAKEN, Faulty, Scene
from tests.host.boards_kit import Boards, Home, Host, boards
from tests.host.test_tenancy import (
    DEPLOY,
    board,
    ended,
    host,
    is_running,
    project,
    pytestmark,
    stop_program,
)

__all__ = ["board", "boards", "host", "project", "pytestmark"]

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.mark.parametrize("signals", [(INT,), (INT, INT), (TERM,), (HUP,), (TERM, HUP, INT)])
def test_a_deploy_that_is_stopped_ends_soon_and_leaves_the_board_to_others(
    host: Host, board: Home, signals: Sequence[signal.Signals]
) -> None:
    kept = host.types(*DEPLOY, board.name)
    assert kept.returncode == 0, kept.stderr
    old = board.current("tiny")
    stopped = host.begins(*DEPLOY, board.name, "--profile", "slow", "--no-reference")
    program = stop_program(board, stopped)
    begun = time.monotonic()
    for each in signals:
        stopped.send_signal(each)
        time.sleep(0.1)
    said = ended(stopped)
    assert time.monotonic() - begun < 15
    assert stopped.returncode == 130, said
    assert said.count("error: interrupted") == 1
    assert "Traceback" not in said
    assert not is_running(program)
    assert board.current("tiny") == old
    assert list((board.folder / ".edgeopt" / "runs").iterdir()) == []
    who = host.types("board", "who", board.name)
    assert who.stdout.startswith("board0 is free"), who.stdout
    again = host.types(*DEPLOY, board.name, "--no-reference")
    assert (again.returncode, board.current("tiny")) == (0, old), again.stderr


def deploy_until(scene: Scene, name: str, config: Path, moment: str, said: Path) -> None:
    """Deploy to a board until something happens in the switch, and write how that ended."""
    inner = open_ssh(name, ssh_config=config)
    said.write_text(scene.deploy(Faulty(inner, "switching", moment), seconds=15))


@pytest.mark.parametrize("moment", ["killed", "killed after", "asleep"])
def test_of_two_hosts_one_ends_in_the_switch_and_the_other_takes_over(
    boards: Boards, board: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The other sees no process of ours: only the connection's end, or the lease's."""
    old, new, third = (make_bundle(tmp_path / str(seed), seed=seed) for seed in range(3))
    (tmp_path / "home").symlink_to(board.folder)
    scene = Scene(tmp_path, old, new)
    first = open_ssh(board.name, ssh_config=boards.ssh_config)
    with hold(first, ROOT, owner="first", seconds=60) as lease:
        deploy(old, lease.board, scene.root, tmp_path / "work")
    first.close()
    said = tmp_path / "said"
    # Not a fork: this process has connections with threads.
    child = multiprocessing.get_context("spawn").Process(
        target=deploy_until, args=(scene, board.name, boards.ssh_config, moment, said)
    )
    child.start()
    assert child.pid is not None
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
    monkeypatch.setattr(socket, "gethostname", lambda: "another host")
    other = open_ssh(board.name, ssh_config=boards.ssh_config)
    begun = time.monotonic()
    with hold(other, ROOT, owner="other", seconds=60, wait=90) as lease:
        # 15 s of lease, or 30 s after the connection's end; then the look that is 10 s later.
        assert time.monotonic() - begun < 30 + 10 + 5
        assert lease.fence == 3
        deploy(third, lease.board, scene.root, tmp_path / "other")
        if moment == "asleep":
            os.kill(child.pid, signal.SIGCONT)
            child.join(60)
            assert said.read_text() == TAKEN
        lease.confirm()
    child.join(10)
    other.close()
    assert link_of(scene.root) == third.digest
    assert_whole(scene.root, third.digest)
    assert link_of(scene.root, "previous") in {old.digest, new.digest}
    assert leftovers(scene.root) == []
