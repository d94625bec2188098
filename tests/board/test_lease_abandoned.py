"""A lease whose holder was killed on this machine is taken over at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board.lease import hold
from edgeopt.board.local import LocalBoard
from edgeopt.errors import BoardBusy

_HOLDER = """
import sys, time
from pathlib import PurePosixPath
from edgeopt.board.lease import hold
from edgeopt.board.local import LocalBoard
with hold(LocalBoard(), PurePosixPath(sys.argv[1]), owner="other", seconds=600):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(root: PurePosixPath) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-c", _HOLDER, str(root)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def root(tmp_path: Path) -> PurePosixPath:
    return PurePosixPath(tmp_path / "deploy")


def test_a_living_holder_keeps_it_and_a_killed_one_does_not(root: PurePosixPath) -> None:
    process = start_holder(root)
    with (
        pytest.raises(BoardBusy, match="other by"),
        hold(LocalBoard(), root, owner="me", seconds=60),
    ):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with hold(LocalBoard(), root, owner="me", seconds=60) as lease:
        lease.confirm()


def test_a_holder_on_another_machine_is_not_judged(root: PurePosixPath) -> None:
    process = start_holder(root)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    file = Path(root) / "lease"
    file.write_text(file.read_text().replace('"host": "', '"host": "far-'))
    with pytest.raises(BoardBusy), hold(LocalBoard(), root, owner="me", seconds=60):
        pass


def test_a_number_that_was_used_again_is_not_its_holder(root: PurePosixPath) -> None:
    process = start_holder(root)
    file = Path(root) / "lease"
    line = file.read_text().replace(f'"pid": {process.pid}', f'"pid": {os.getpid()}')
    process.kill()
    process.communicate()
    file.write_text(line)
    with hold(LocalBoard(), root, owner="me", seconds=60) as lease:
        lease.confirm()
