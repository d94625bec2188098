"""Every state of a deploy meets every fault: a table without a blank cell.

python -m tests.deploy.test_states
"""

import ast
import itertools
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.artifact import Bundle
from edgeopt.board import TIMED_OUT, Board, Completed
from edgeopt.board.lease import hold, kick_owner, read_tenancy
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import read_status
from edgeopt.deploy.states import State
from edgeopt.errors import BoardUnreachable, EdgeoptError, Interrupted
from tests.board.wrapped import Wrapped
from tests.deploy.kit import (
    APP,
    assert_whole,
    copy_tree,
    deploy,
    leftovers,
    link_of,
    make_bundle,
)
from tests.deploy.passing import STATES, Passing

REPOSITORY = Path(__file__).parents[2]
ROOT = PurePosixPath("~/deploy")

#: error: the command fails. hang: it never ends. lost: the board is gone before or after it.
#: killed: edgeopt is, before or after it. taken: another host has the lease by then. stopped: the
#: user presses Ctrl-C. power cut: the board is gone in the middle of it.
FAULTS = (
    *("error", "hang", "lost", "lost after", "killed", "killed after"),
    *("taken", "stopped", "power cut"),
)

#: How a deploy ends: the error that it raises and its exit code, or the signal that killed it.
FAILED, GONE, TAKEN = "DeployFailed 10", "BoardUnreachable 6", "LeaseLost 8"
STOPPED, KILLED, WELL = "Interrupted 130", "killed -9", "well 0"

#: How a deploy ends that meets a fault at a state: for each state, one for each of FAULTS. A board
#: that takes no upload is gone. Once a release is current and was checked, what cannot be collected
#: is left to the next command.
ENDINGS = {
    "surveying": (FAILED, FAILED, GONE, GONE, KILLED, KILLED, TAKEN, STOPPED, GONE),
    "preparing": (FAILED, FAILED, GONE, GONE, KILLED, KILLED, TAKEN, STOPPED, GONE),
    "uploading": (GONE, GONE, GONE, GONE, KILLED, KILLED, TAKEN, STOPPED, GONE),
    "sealing": (FAILED, FAILED, GONE, GONE, KILLED, KILLED, TAKEN, STOPPED, GONE),
    "assembling": (FAILED, FAILED, GONE, GONE, KILLED, KILLED, TAKEN, STOPPED, GONE),
    "trying": (FAILED, FAILED, GONE, GONE, KILLED, KILLED, TAKEN, STOPPED, GONE),
    "switching": (FAILED, FAILED, GONE, GONE, KILLED, KILLED, TAKEN, STOPPED, GONE),
    "checking": (FAILED, FAILED, GONE, GONE, KILLED, KILLED, TAKEN, STOPPED, GONE),
    "collecting": (WELL, WELL, GONE, GONE, KILLED, KILLED, TAKEN, STOPPED, GONE),
}
#: Every cell of the table with its ending; one that is not there is blank.
CELLS = {
    (state, fault): ending
    for state, endings in ENDINGS.items()
    for fault, ending in zip(FAULTS, endings, strict=True)
}

#: A command in the script of a state that a power cut comes before: others were done by then.
CUT = {
    "surveying": "df",
    "preparing": "mkdir",
    "sealing": "mv",
    "assembling": "ln",
    "trying": "cp",
    "switching": "mv",
    "checking": "cp",
    "collecting": "rm",
}

#: What the board itself says that it is in the middle of, when edgeopt was killed before the
#: command of a state, or after it.
SEEN: "dict[str, tuple[State, State]]" = {
    "surveying": ("ready", "ready"),
    "preparing": ("ready", "staging"),
    "uploading": ("staging", "staging"),
    "sealing": ("staging", "staging"),
    "assembling": ("staging", "trying"),
    "trying": ("trying", "trying"),
    "switching": ("trying", "checking"),
    "checking": ("checking", "checking"),
    "collecting": ("checking", "ready"),
}

#: Faults that another test causes, which shows for itself that it has met every state.
SWEPT = {
    "reset": "tests/host/test_reset.py::test_a_connection_that_is_reset_at_a_state_leaves_a_whole_"
    "release_and_a_rerun_converges",
    "fails once": "tests/deploy/test_crash.py::test_a_board_lost_or_failing_at_any_call_has_the_"
    "old_release_or_the_new",
    "random kill": "tests/host/test_soak.py::test_half_a_minute_of_random_kills_leaves_whole_"
    "releases_and_every_rerun_converges",
}


@dataclass
class Faulty(Wrapped):
    """This machine, where one fault happens at one state."""

    state: str
    fault: str
    hit: int = 0
    gone: bool = False
    runs: int = 0

    def close(self) -> None:
        pass

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        if self._due(argv):
            self._before()
            if self.fault == "error":
                return Completed(tuple(argv), 1, b"", b"")
            if self.fault == "hang":
                done = self.inner.run(["sleep", "60"], timeout=0.5)
                assert done.status == TIMED_OUT
                return done
            if self.fault == "power cut":
                self._cut(argv, timeout)
            self.inner.run(argv, stdin=stdin, timeout=timeout)
            self._after()
        self._answers()
        return self.inner.run(argv, stdin=stdin, timeout=timeout)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        if self.state == "uploading" and remote.suffix == ".part" and not self.hit:
            self._before()
            if self.fault in ("error", "hang"):
                self.gone = True
            else:
                half = local.with_name("half")
                half.write_bytes(local.read_bytes()[: local.stat().st_size // 2])
                self.inner.put(half, remote, offset=offset, timeout=timeout)
                half.unlink()
            self._after()
        self._answers()
        self.inner.put(local, remote, offset=offset, timeout=timeout)

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        self._answers()
        self.inner.get(remote, local, limit=limit, timeout=timeout)

    def _due(self, argv: Sequence[str]) -> bool:
        script = STATES[self.state]
        if self.hit or not script or not any(script in each for each in argv):
            return False
        # The program runs to try the release, and again to check it.
        self.runs += 1
        return self.runs == (2 if self.state == "checking" else 1)

    def _before(self) -> None:
        self.hit += 1
        if self.fault == "lost":
            self.gone = True
        self._answers()
        if self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "stopped":
            raise Interrupted("Ctrl-C")
        if self.fault == "asleep":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.fault == "taken":
            kick_owner(self.inner, ROOT, read_tenancy(self.inner, ROOT).owner, by="another")

    def _after(self) -> None:
        if self.fault == "killed after":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault in ("lost after", "power cut"):
            self.gone = True

    def _cut(self, argv: Sequence[str], timeout: float) -> None:
        """Run a command that is killed, with all that belongs to it, in its middle."""
        usual = os.environ["PATH"]
        with tempfile.TemporaryDirectory() as folder:
            wrapper = Path(folder, CUT[self.state])
            wrapper.write_text(f"#!/bin/sh\n: > {folder}/reached\nkill -s KILL 0\n")
            wrapper.chmod(0o755)
            os.environ["PATH"] = f"{folder}{os.pathsep}{usual}"
            done = self.inner.run(argv, timeout=timeout)
            os.environ["PATH"] = usual
            assert (done.status, Path(folder, "reached").exists()) == (137, True)
        self.gone = True
        self._answers()

    def _answers(self) -> None:
        if self.gone:
            raise BoardUnreachable("the board is gone")


@dataclass
class Scene:
    """A home folder with one release, and another bundle to deploy."""

    folder: Path
    old: Bundle
    new: Bundle

    @property
    def root(self) -> Path:
        return self.folder / "home" / "deploy"

    def fresh(self) -> None:
        shutil.rmtree(self.folder / "home", ignore_errors=True)
        copy_tree(self.folder / "template", self.folder / "home")

    def deploy(self, board: Board, seconds: float = 60.0) -> str:
        """Deploy under a lease; return which error ended it, with its exit code."""
        try:
            with hold(board, ROOT, owner="edgeopt deploy", seconds=seconds) as lease:
                deploy(self.new, lease.board, self.root, self.folder / "work")
        except EdgeoptError as error:
            return f"{type(error).__name__} {error.exit_code}"
        return WELL


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("states")
    old, new = (make_bundle(folder / str(seed), seed=seed) for seed in range(2))
    board = LocalBoard(home=folder / "template")
    (folder / "template").mkdir()
    with hold(board, ROOT, owner="first", seconds=60) as lease:
        deploy(old, lease.board, folder / "template" / "deploy", folder / "work")
    return Scene(folder, old, new)


def attempt(scene: Scene, state: str, fault: str) -> str:
    """Deploy until the fault, in a process of its own, and return how that ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            board = Faulty(LocalBoard(home=scene.folder / "home"), state, fault)
            said = scene.deploy(board)
            os.write(write, f"{said} {board.hit}".encode())
        finally:
            os._exit(0)
    os.close(write)
    said = os.read(read, 1000).decode()
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return said or f"killed {status} 1"


@pytest.mark.parametrize(("state", "fault"), CELLS)
def test_a_fault_at_a_state_leaves_a_whole_release_and_a_rerun_converges(
    scene: Scene, state: str, fault: str
) -> None:
    scene.fresh()
    begun = time.monotonic()
    ending, _, hit = attempt(scene, state, fault).rpartition(" ")
    assert time.monotonic() - begun < (15 if fault == "stopped" else 60)
    # One failure: what only mends what follows a switch may be left to the next command.
    assert (ending, hit) == (CELLS[state, fault], "1")
    after = link_of(scene.root)
    switched = list(STATES).index(state) > list(STATES).index("switching")
    assert after in {scene.old.digest, scene.new.digest}
    if not switched and (state, fault) not in {
        ("switching", "lost after"),
        ("switching", "killed after"),
    }:
        assert after == scene.old.digest
    if ending == WELL:
        assert after == scene.new.digest
    assert_whole(scene.root, after)
    here = LocalBoard(home=scene.folder / "home")
    assert scene.deploy(here) == WELL
    assert link_of(scene.root) == scene.new.digest
    assert_whole(scene.root, scene.new.digest)
    assert leftovers(scene.root) == []
    tenancy = read_tenancy(here, ROOT)
    assert (tenancy.owner.held, tenancy.processes) == (False, ())
    assert sorted(path.name for path in scene.root.iterdir()) == [
        "apps", "fence", "objects", "runs"
    ]  # fmt: skip


@pytest.mark.parametrize("moment", ["killed", "killed after"])
@pytest.mark.parametrize("state", STATES)
def test_another_host_reads_on_the_board_what_was_under_way_and_deploys_something_else(
    scene: Scene, state: str, moment: str
) -> None:
    """Nothing but the board tells it: neither what was meant, nor by whom."""
    scene.fresh()
    attempt(scene, state, moment)
    here = LocalBoard(home=scene.folder / "home")
    found = read_status(here, APP, root=ROOT, check=True)
    assert found.state == SEEN[state][moment == "killed after"]
    done = found.current == scene.new.digest
    expected = "" if found.state == "ready" else scene.new.digest
    assert (found.subject, found.proven) == (expected, found.state != "checking")
    assert (found.files_good, scene.new.digest[:12] in found.meaning) == (True, bool(expected))
    third = make_bundle(scene.folder / f"third {state} {moment}", seed=2)
    with hold(here, ROOT, owner="another", seconds=60) as lease:
        deploy(third, lease.board, scene.root, scene.folder / "work")
    good = scene.new if done and found.proven else scene.old
    assert (link_of(scene.root), link_of(scene.root, "previous")) == (third.digest, good.digest)
    assert_whole(scene.root, good.digest)
    assert leftovers(scene.root) == []


@pytest.mark.parametrize("moment", ["killed", "killed after", "asleep"])
def test_of_two_hosts_one_ends_in_the_switch_and_the_other_takes_over_in_time(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The other sees no process of ours and no connection: only the lease's end."""
    scene.fresh()
    third = make_bundle(scene.folder / f"third {moment}", seed=2)
    here = LocalBoard(home=scene.folder / "home")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = scene.deploy(Faulty(here, "switching", moment), seconds=15)
            os.write(write, said.encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, os.WUNTRACED)
    monkeypatch.setattr(socket, "gethostname", lambda: "another host")
    begun = time.monotonic()
    with hold(here, ROOT, owner="other", seconds=60, wait=60) as lease:
        assert time.monotonic() - begun < 15 + 10 + 2
        assert lease.fence == 3
        deploy(third, lease.board, scene.root, scene.folder / "other")
        if moment == "asleep":
            os.kill(pid, signal.SIGCONT)
            assert os.read(read, 1000).decode() == TAKEN
            os.waitpid(pid, 0)
        lease.confirm()
    os.close(read)
    assert link_of(scene.root) == third.digest
    assert_whole(scene.root, third.digest)
    assert link_of(scene.root, "previous") in {scene.old.digest, scene.new.digest}
    assert leftovers(scene.root) == []


def test_every_state_is_one_that_a_deploy_passes_in_this_order(scene: Scene) -> None:
    scene.fresh()
    watched = Passing(LocalBoard(home=scene.folder / "home"))
    assert scene.deploy(watched) == WELL
    assert list(dict.fromkeys(state for state in watched.states if state)) == list(STATES)


def cells() -> dict[tuple[str, str], str]:
    """Return the test of each cell of the table, by state and fault."""
    here = Path(__file__).relative_to(REPOSITORY)
    name = test_a_fault_at_a_state_leaves_a_whole_release_and_a_rerun_converges.__name__
    own = {(state, fault): f"{here}::{name}[{state}-{fault}]" for state, fault in CELLS}
    return own | {
        (state, fault): test for state, (fault, test) in itertools.product(STATES, SWEPT.items())
    }


def blanks(found: dict[tuple[str, str], str]) -> list[tuple[str, str]]:
    """Return the cells that no test fills which exists."""
    empty = []
    for cell in itertools.product(STATES, (*FAULTS, *SWEPT)):
        path, _, name = found.get(cell, "").partition("::")
        name = name.partition("[")[0]
        file = REPOSITORY / path
        defined = file.is_file() and name in {
            each.name
            for each in ast.walk(ast.parse(file.read_text()))
            if isinstance(each, ast.FunctionDef)
        }
        if not path or not defined:
            empty.append(cell)
    return empty


def test_no_cell_of_the_table_is_blank() -> None:
    assert blanks(cells()) == []


def test_a_blank_cell_would_be_seen() -> None:
    found = cells()
    del found["trying", "hang"]
    found["switching", "reset"] = "tests/deploy/test_crash.py::test_gone"
    assert blanks(found) == [("trying", "hang"), ("switching", "reset")]


def table() -> str:
    """Return the table state x fault as Markdown; each cell is a test's name."""
    faults, found = (*FAULTS, *SWEPT), cells()
    lines = [f"| state | {' | '.join(faults)} |", f"|---|{'---|' * len(faults)}"]
    for state in STATES:
        tests = [found[state, fault].rpartition("/")[2] for fault in faults]
        lines.append(f"| {state} | {' | '.join(f'`{each}`' for each in tests)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
