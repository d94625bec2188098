"""The emulated board: a board's promises, its memory, its clock, and its life between commands."""

import dataclasses
import threading
import time
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board import Board
from edgeopt.board.emulator import (
    default_cache,
    list_boards,
    login_hop,
    open_emulated,
    start_board,
    stop_board,
)
from edgeopt.board.facts import probe_target, read_facts
from edgeopt.board.lease import hold
from edgeopt.board.ssh import SshBoard
from edgeopt.errors import BoardBusy, BoardUnreachable, ConfigError
from edgeopt.target import Target
from tests.board.contract import BoardContract, is_alive
from tests.hil.conftest import INSTANCE, make_target

pytestmark = pytest.mark.hil


class TestEmulatedBoard(BoardContract):
    """Every promise of a board, kept by a system of busybox and OpenSSH under emulation."""

    @pytest.fixture
    def board(self, emulated_board: SshBoard) -> Board:
        return emulated_board

    def test_its_figures_are_emulated(self, board: Board) -> None:
        assert (board.name, board.kind) == (f"emulated {INSTANCE}", "emulated")


def test_its_facts_are_those_of_the_target(emulated_board: SshBoard) -> None:
    facts = read_facts(emulated_board)
    assert (facts.machine, facts.kernel_machine) == ("aarch64", "aarch64")
    assert [each.core for each in facts.processors] == ["cortex-a72"]
    assert "asimd" in facts.features
    # What a Cortex-A72 lacks, so that a build for dot products is refused there.
    assert "asimddp" not in facts.features
    assert 440 << 20 < facts.ram_total < 512 << 20
    assert facts.free > 1_500_000_000
    assert (facts.writable, facts.executable, facts.folder) == (True, True, "/home/edge")
    assert tuple(map(int, facts.glibc.split("."))) >= (2, 36)
    assert read_facts(emulated_board).boot_id == facts.boot_id
    system = read_facts(emulated_board, folder=PurePosixPath("/usr/absent/below"))
    assert (system.folder, system.writable) == ("/usr", False)


def test_a_probe_writes_a_target_that_loads(emulated_board: SshBoard) -> None:
    text = probe_target(read_facts(emulated_board), name="probed", board=emulated_board.name)
    target = Target.model_validate(tomllib.loads(text))
    assert target.cluster[0].core == "cortex-a72"
    assert target.emulation is not None
    assert target.emulation.cpu == "cortex-a72"


def test_the_same_work_takes_the_same_instructions(emulated_board: SshBoard) -> None:
    script = (
        "read a b </proc/uptime; head -c 10000000 /dev/zero | sha256sum >/dev/null;"
        "read c d </proc/uptime; echo $a $c"
    )
    took = []
    for _ in range(3):
        done = emulated_board.run(["sh", "-c", script], timeout=300)
        begun, ended = map(float, done.stdout.split())
        took.append(ended - begun)
    # Hundredths of a second are all that /proc/uptime shows.
    assert max(took) - min(took) <= 0.03 + 0.1 * min(took), took
    assert min(took) > 0.02


def test_running_out_of_memory_kills_the_command_and_not_the_board(
    emulated_board: SshBoard,
) -> None:
    # Memory files cannot be evicted; 400 MB more are promised, and then not there.
    script = (
        "dd if=/dev/zero of=/tmp/filled bs=1M count=200 2>/dev/null;"
        "dd if=/dev/zero of=/dev/null bs=400M count=1; s=$?; rm /tmp/filled; exit $s"
    )
    done = emulated_board.run(["sh", "-c", script], timeout=300)
    assert done.status == 137
    assert emulated_board.run(["true"], timeout=60).status == 0


def test_a_connection_that_ends_leaves_no_orphan(emulated_board: SshBoard) -> None:
    other = open_emulated(make_target(), instance=INSTANCE)
    name = f"trace-{time.monotonic_ns()}"
    script = f"sleep 981 & echo $! $$ >{name}; exec sleep 981"

    def close_when_it_runs() -> None:
        for _ in range(100):
            if emulated_board.run(["test", "-s", name], timeout=60).status == 0:
                break
        other.close()

    threading.Thread(target=close_when_it_runs).start()
    with pytest.raises(BoardUnreachable):
        other.run(["sh", "-c", script], timeout=120)
    numbers = emulated_board.run(["cat", name], timeout=60).stdout.decode().split()
    assert len(numbers) == 2
    for number in numbers:
        assert not is_alive(emulated_board, number)


def test_a_lease_is_kept_on_the_board(emulated_board: SshBoard) -> None:
    root = PurePosixPath("leased")
    with hold(emulated_board, root, owner="first", seconds=600) as lease:
        with (
            pytest.raises(BoardBusy, match="first by"),
            hold(emulated_board, root, owner="second", seconds=600),
        ):
            pass
        lease.confirm()
    with hold(emulated_board, root, owner="third", seconds=1) as lease:
        time.sleep(3)
        with (
            hold(emulated_board, root, owner="fourth", seconds=600),
            pytest.raises(BoardBusy, match="fourth by"),
        ):
            lease.confirm()


def test_a_board_that_runs_is_used_again_and_its_files_are_still_there(
    emulated_board: SshBoard, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("still here")
    emulated_board.put(tmp_path / "file", PurePosixPath("kept"), timeout=60)
    first = start_board(make_target(), instance=INSTANCE)
    again = open_emulated(make_target(), instance=INSTANCE)
    assert again.run(["cat", "kept"], timeout=60).stdout == b"still here"
    again.close()
    assert first in list_boards()
    assert start_board(make_target(), instance=INSTANCE) == first
    with pytest.raises(ConfigError, match="runs with other settings"):
        start_board(make_target(cpu="cortex-a76"), instance=INSTANCE)


def test_another_cpu_has_other_features_and_stopping_loses_the_state(tmp_path: Path) -> None:
    name = "test-a76"
    target = make_target(cpu="cortex-a76", ram=256 << 20)
    handle = start_board(target, instance=name, icount=False)
    try:
        board = open_emulated(target, instance=name, icount=False)
        facts = read_facts(board)
        assert {"asimddp", "atomics"} <= set(facts.features)
        assert facts.ram_total < 256 << 20
        (tmp_path / "file").write_text("x")
        board.put(tmp_path / "file", PurePosixPath("lost"), timeout=60)
        # As a crash of the machine would: nobody says goodbye to the board's connections.
        assert stop_board(name)
        assert not stop_board(name)
        assert name not in {each.name for each in list_boards()}
        fresh = open_emulated(target, instance=name, icount=False)
        assert fresh.run(["test", "-e", "lost"], timeout=60).status == 1
        assert read_facts(fresh).boot_id != facts.boot_id
        with pytest.raises(BoardUnreachable):
            board.run(["true"], timeout=30)
        fresh.close()
        board.close()
    finally:
        stop_board(name)
    assert handle.image_path.is_relative_to(default_cache())


def test_the_boards_host_key_is_pinned(emulated_board: SshBoard, tmp_path: Path) -> None:
    handle = start_board(make_target(), instance=INSTANCE)
    hop = dataclasses.replace(login_hop(handle), known_hosts=(tmp_path / "none",))
    with pytest.raises(BoardUnreachable, match="host key is unknown"):
        SshBoard((hop,), name="unpinned").connect()
