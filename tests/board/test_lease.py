"""The lease, on this machine's own file system and shell."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board.lease import Lease, hold
from edgeopt.board.local import LocalBoard
from edgeopt.errors import BoardBusy, BoardIncompatible, BoardUnreachable

ROOT = PurePosixPath("~/leased here")


@pytest.fixture
def board(tmp_path: Path) -> LocalBoard:
    return LocalBoard(home=tmp_path)


def file_of(tmp_path: Path) -> Path:
    return tmp_path / "leased here" / "lease"


def left_in(tmp_path: Path) -> list[str]:
    return sorted(each.name for each in file_of(tmp_path).parent.iterdir())


def rewrite(tmp_path: Path, change: Callable[[list[str]], None]) -> None:
    words = file_of(tmp_path).read_text().split(" ", 3)
    change(words)
    file_of(tmp_path).write_text(" ".join(words))


def test_one_holder_at_a_time_and_the_other_is_told_who(board: LocalBoard, tmp_path: Path) -> None:
    with hold(board, ROOT, owner="deploy questions", seconds=100) as lease:
        assert file_of(tmp_path).read_text().startswith(lease.token)
        with (
            pytest.raises(BoardBusy, match=r"deploy questions by .*process") as caught,
            hold(board, ROOT, owner="other", seconds=100),
        ):
            pass
        assert caught.value.exit_code == 8
        assert "100 s at the latest" in caught.value.why or "99 s" in caught.value.why
        lease.confirm()
        lease.renew(500)
        lease.confirm()
    assert left_in(tmp_path) == ["fence"]
    with hold(board, ROOT, owner="other", seconds=100):
        pass


def test_an_expired_lease_is_taken_over_and_its_holder_finds_out(
    board: LocalBoard, tmp_path: Path
) -> None:
    with hold(board, ROOT, owner="slow", seconds=1) as slow:
        time.sleep(2.1)
        with hold(board, ROOT, owner="next", seconds=100) as after:
            for call in (slow.confirm, lambda: slow.renew(100)):
                with pytest.raises(BoardBusy, match="the lease was lost"):
                    call()
            after.confirm()
            assert after.token != slow.token


def test_losing_the_lease_does_not_release_the_next_holders(
    board: LocalBoard, tmp_path: Path
) -> None:
    outer = hold(board, ROOT, owner="slow", seconds=1)
    outer.__enter__()
    time.sleep(2.1)
    with hold(board, ROOT, owner="next", seconds=100) as after:
        outer.__exit__(None, None, None)
        after.confirm()


def test_a_restart_of_the_board_ends_every_lease(board: LocalBoard, tmp_path: Path) -> None:
    with hold(board, ROOT, owner="before", seconds=10_000) as lease:
        rewrite(tmp_path, lambda words: words.__setitem__(1, "another-boot"))
        with pytest.raises(BoardBusy):
            lease.confirm()
        with hold(board, ROOT, owner="after", seconds=100) as after:
            after.confirm()


@pytest.mark.parametrize("stale", [False, True] * 3)
def test_of_many_that_ask_at_once_exactly_one_gets_it(
    board: LocalBoard, tmp_path: Path, stale: bool
) -> None:
    if stale:
        file_of(tmp_path).parent.mkdir(exist_ok=True)
        file_of(tmp_path).write_text('abc another-boot 99999999999 {"owner": "dead"}\n')
    won: list[Lease] = []
    lost: list[BoardBusy] = []
    done = threading.Event()
    together = threading.Barrier(8)

    def ask(number: int) -> None:
        together.wait()
        try:
            with hold(board, ROOT, owner=str(number), seconds=100) as lease:
                won.append(lease)
                done.wait(30)
        except BoardBusy as error:
            lost.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    until = time.monotonic() + 20
    while len(won) + len(lost) < 8 and time.monotonic() < until:
        time.sleep(0.05)
    done.set()
    for each in threads:
        each.join()
    assert (len(won), len(lost)) == (1, 7), [str(each) for each in lost]
    assert left_in(tmp_path) == ["fence"]


def owner_of_turn(pid: int) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    start = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{boot} {pid}:{start}\n"


def make_turn(folder: Path, by: str) -> None:
    folder.mkdir(parents=True)
    (folder / "by").write_text(by)


def test_a_taker_that_died_in_the_middle_blocks_nobody_and_a_living_one_does(
    board: LocalBoard, tmp_path: Path
) -> None:
    folder = file_of(tmp_path).parent
    taker = subprocess.Popen(["sleep", "950"])
    make_turn(folder / "stale.abc", owner_of_turn(taker.pid))
    file_of(tmp_path).write_text("abc another-boot 1 dead\n")
    try:
        with pytest.raises(BoardBusy), hold(board, ROOT, owner="early", seconds=100):
            pass
        assert left_in(tmp_path) == ["lease", "stale.abc"]
    finally:
        taker.kill()
        taker.wait()
    with hold(board, ROOT, owner="late", seconds=100) as lease:
        lease.confirm()
    assert left_in(tmp_path) == ["fence"]


def test_of_many_after_several_dead_takers_exactly_one_gets_it(
    board: LocalBoard, tmp_path: Path
) -> None:
    folder = file_of(tmp_path).parent
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    # Of this boot, whose number is used again by now, and of another boot.
    make_turn(folder / "stale.abc", f"{boot} 1:99999999999\n")
    make_turn(folder / "stale.abc.1", f"another-boot {os.getpid()}:1\n")
    test_of_many_that_ask_at_once_exactly_one_gets_it(board, tmp_path, stale=True)


def test_a_folder_that_cannot_be_written_says_so(board: LocalBoard, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BoardIncompatible, match="cannot keep a lease in file/below"),
        hold(board, PurePosixPath("file/below"), owner="x", seconds=1),
    ):
        pass


def test_what_the_body_raises_is_what_is_raised(board: LocalBoard, tmp_path: Path) -> None:
    with pytest.raises(BoardUnreachable, match="gone"), hold(board, ROOT, owner="x", seconds=9):
        raise BoardUnreachable("gone")
    assert not file_of(tmp_path).exists()
