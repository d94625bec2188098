import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeopt import scratch as module
from edgeopt.scratch import scratch

#: Says where its folder is, and is killed there.
PROGRAM = """
import sys, time
from pathlib import Path
from edgeopt.scratch import scratch
with scratch(Path(sys.argv[1])) as folder:
    (folder / "weights.bin").write_bytes(b"x" * 1000)
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _first_of_its_process() -> None:
    module._sweep.cache_clear()


def test_nobody_else_makes_folders_in_the_systems_own() -> None:
    wrong = re.compile(r"mkdtemp|TemporaryDirectory\((?!dir=)|mkstemp\((?!dir=)|NamedTemporary")
    package = Path(module.__file__).parent
    found = [path.name for path in package.rglob("*.py") if wrong.search(path.read_text())]
    assert found == []


def begin(parent: Path) -> "tuple[subprocess.Popen[str], Path]":
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as said:
        return process, Path(said.readline().strip())


def test_a_folder_is_for_this_account_alone_and_goes_with_what_is_in_it(tmp_path: Path) -> None:
    with scratch(tmp_path) as folder:
        (folder / "a").mkdir()
        (folder / "a" / "b").touch()
        assert folder.parent.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_a_folder_goes_also_when_what_it_was_for_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it fails"), scratch(tmp_path):
        raise ValueError("it fails")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_the_next_one_removes_and_nothing_else(tmp_path: Path) -> None:
    others = [tmp_path / "edgeopt-of-somebody", tmp_path / "mine"]
    for each in others:
        each.mkdir()
    (tmp_path / "edgeopt-link").symlink_to(others[1])
    (others[1] / module._LOCK).touch()
    (dead, left), (alive, used) = begin(tmp_path), begin(tmp_path)
    try:
        os.kill(dead.pid, signal.SIGKILL)
        dead.wait(10)
        assert (left / "weights.bin").exists()
        with scratch(tmp_path):
            assert not left.parent.exists()
            assert (used / "weights.bin").exists()
    finally:
        alive.kill()
        alive.wait(10)
    assert all(each.exists() for each in others)
    assert (tmp_path / "edgeopt-link").is_symlink()


def test_many_that_begin_at_once_take_nothing_from_each_other(tmp_path: Path) -> None:
    """Each removes what killed ones left, while the others make theirs."""
    for _ in range(5):
        process, _left = begin(tmp_path)
        process.kill()
        process.wait(10)
    pids = []
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                until = time.monotonic() + 1
                while time.monotonic() < until:
                    module._sweep.cache_clear()
                    with scratch(tmp_path) as folder:
                        (folder / "file").write_text("x")
                        assert (folder / "file").read_text() == "x"
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    assert {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids} == {0}
    assert list(tmp_path.iterdir()) == []
