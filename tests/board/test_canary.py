"""A memory limit counts when a process beyond it was killed, not when it was written."""

import os
from pathlib import Path

import pytest

from edgeopt.board.canary import try_memory_limit
from edgeopt.board.local import LocalBoard
from edgeopt.testing import ScriptedBoard, answer


def fake(folder: Path, *, controllers: str = "cpu memory", limits: bool = True) -> Path:
    """A tree as cgroup v2 shows it, in which nothing has any effect."""
    (folder / "cgroup.controllers").write_text(f"{controllers}\n")
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group = folder / own.strip("/") / "edgeopt-canary"
    group.mkdir(parents=True)
    if limits:
        (group / "memory.events").write_text("oom 0\noom_kill 3\n")
        for name in ("memory.max", "memory.swap.max", "cgroup.procs"):
            (group / name).touch()
    return group


def test_a_limit_without_effect_is_ignored_and_not_believed(tmp_path: Path) -> None:
    group = fake(tmp_path)
    assert try_memory_limit(LocalBoard(), mounted=str(tmp_path)) == "ignored"
    assert (group / "memory.max").read_text() == "8388608\n"
    assert (group / "memory.swap.max").read_text() == "0\n"
    assert (group / "cgroup.procs").read_text().strip().isdecimal()


def test_a_kill_that_the_kernel_counted_is_a_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = fake(tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    # What the kernel does to tail, whose buffer exceeds the limit; -n is the script's own use.
    (tools / "tail").write_text(
        f"#!/bin/sh\nif [ \"$1\" = -n ]; then exec /usr/bin/tail \"$@\"; fi\n"
        f"echo 'oom_kill 4' > {group}/memory.events\nkill -s KILL $$\n"
    )  # fmt: skip
    (tools / "tail").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert try_memory_limit(LocalBoard(), mounted=str(tmp_path)) == "enforced"


def test_a_kernel_without_the_controller_is_told_apart(tmp_path: Path) -> None:
    fake(tmp_path, controllers="cpu io pids")
    assert try_memory_limit(LocalBoard(), mounted=str(tmp_path)) == "absent"
    assert try_memory_limit(LocalBoard(), mounted=str(tmp_path / "nowhere")) == "absent"


def test_an_account_that_may_set_none_is_told_apart_and_leaves_no_group(tmp_path: Path) -> None:
    group = fake(tmp_path, limits=False)
    assert try_memory_limit(LocalBoard(), mounted=str(tmp_path)) == "forbidden"
    assert not group.exists()


def test_this_machine_gives_an_answer_and_keeps_no_group() -> None:
    assert try_memory_limit(LocalBoard()) in {"enforced", "ignored", "forbidden", "absent"}
    assert list(Path("/sys/fs/cgroup").glob("**/edgeopt-canary")) == []


def test_a_board_that_says_anything_else_has_none() -> None:
    class Odd:
        def run(self, argv: object, *, stdin: bytes = b"", timeout: float) -> object:
            return answer("rm -rf\n")

    scripted = ScriptedBoard()
    scripted.run = Odd().run  # type: ignore[method-assign, assignment]
    assert try_memory_limit(scripted) == "absent"
