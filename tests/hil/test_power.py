"""An emulated board that restarts, and whose power fails: its kernel and its disk are real."""

import contextlib
import dataclasses
import platform
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.artifact import Bundle
from edgeopt.board import Board, Completed
from edgeopt.board.canary import try_memory_limit
from edgeopt.board.emulator import (
    cut_power,
    default_cache,
    list_boards,
    open_emulated,
    stop_board,
)
from edgeopt.board.facts import read_facts
from edgeopt.board.lease import hold
from edgeopt.board.local import LocalBoard
from edgeopt.board.recover import recover_board
from edgeopt.board.ssh import SshBoard
from edgeopt.confine import confine_release
from edgeopt.deploy import (
    deploy_bundle,
    read_history,
    read_status,
    rollback_release,
    stage_bundle,
)
from edgeopt.errors import (
    BoardUnreachable,
    BudgetExceeded,
    ConfigError,
    DeployFailed,
    LeaseLost,
)
from edgeopt.measure import measure_release
from edgeopt.surroundings import Confinement
from tests.board.wrapped import Wrapped
from tests.deploy.kit import APP, deploy, layers, make_bundle, samples_of, smoke_of
from tests.hil.conftest import make_target
from tests.hil.test_deploy import bundle_for_board, files_below

pytestmark = pytest.mark.hil

INSTANCE = "test-power"
ROOT = PurePosixPath("~/.edgeopt")
TARGET = make_target(ram=256 << 20)


def start() -> SshBoard:
    return open_emulated(TARGET, instance=INSTANCE, icount=False, keep=True)


def lose_power() -> None:
    assert cut_power(INSTANCE)


@pytest.fixture(scope="module", autouse=True)
def _kept_board() -> Iterator[None]:
    stop_board(INSTANCE)
    try:
        start().close()
    except ConfigError as error:
        pytest.skip(f"no emulated board here: {error.what}; run: make board-packages")
    yield
    stop_board(INSTANCE)
    for disk in (default_cache() / "boards" / INSTANCE).glob("disk-*"):
        disk.unlink()


@pytest.fixture
def root(request: pytest.FixtureRequest) -> PurePosixPath:
    """A deploy folder of each test's own."""
    return ROOT / f"of-{zlib.crc32(request.node.name.encode()):x}"


@pytest.fixture
def bundles(tmp_path: Path) -> list[Bundle]:
    weights = (layers(count=2), layers(count=2, layer_1=9))
    return [
        bundle_for_board(tmp_path / str(number), weights=each)
        for number, each in enumerate(weights)
    ]


def install(bundle: Bundle, board: Board, root: PurePosixPath, work: Path) -> None:
    deploy_bundle(
        bundle,
        board,
        facts=read_facts(board),
        app=APP,
        root=root,
        smoke=smoke_of(),
        directory=work,
    )


@dataclasses.dataclass
class Failing(Wrapped):
    """A board at which something happens right after its Nth call, before that is answered."""

    at: int
    happen: Callable[[], None]
    calls: int = 0

    def close(self) -> None:
        pass

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        done = self.inner.run(argv, stdin=stdin, timeout=timeout)
        self._count()
        return done

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        self.inner.put(local, remote, offset=offset, timeout=timeout)
        self._count()

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        self.inner.get(remote, local, limit=limit, timeout=timeout)
        self._count()

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.happen()
            raise BoardUnreachable("the board is gone")


def restart(board: Board) -> None:
    """Ask the board's system to restart, as the ladder does, and wait for the next boot."""
    before = read_facts(board).boot_id
    board.run(["sh", "-c", "reboot 2>/dev/null || /sbin/reboot"], timeout=60)
    port = next(each.port for each in list_boards() if each.name == INSTANCE)
    down, until = False, time.monotonic() + 200
    while time.monotonic() < until:
        answers = has_banner(port)
        down = down or not answers
        if down and answers:
            fresh = start()
            assert read_facts(fresh).boot_id != before
            fresh.close()
            return
        time.sleep(0.2)
    raise AssertionError("the board did not restart")


def has_banner(port: int) -> bool:
    """Tell whether a server answers; the emulator takes connections for a board that boots."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as probe:
        probe.settimeout(2)
        return probe.recv(4) == b"SSH-"
    return False


def count_calls(bundle: Bundle, tmp_path: Path) -> int:
    """Return how many calls a deploy makes, on this machine, which is quicker."""
    here = bundle.model_copy(update={"machine": platform.machine()})
    rehearsal = Failing(LocalBoard(), -1, lambda: None)
    for number in range(2):
        rehearsal.calls = 0
        deploy(
            here if number else make_bundle(tmp_path / "old"), rehearsal, tmp_path / "r", tmp_path
        )
    return rehearsal.calls


def assert_kept_without_power(board: Board, root: PurePosixPath, bundle: Bundle) -> None:
    """Cut the power, and find the release current, whole and nothing left to do."""
    lose_power()
    board.close()
    again = start()
    status = read_status(again, APP, root=root, check=True)
    assert (status.state, status.current) == ("ready", bundle.digest)
    assert status.files_good
    again.close()


def test_a_release_survives_a_power_cut_right_after_the_deploy(
    tmp_path: Path, root: PurePosixPath, bundles: list[Bundle]
) -> None:
    board = start()
    install(bundles[0], board, root, tmp_path)
    assert_kept_without_power(board, root, bundles[0])


def test_a_deploy_that_changed_nothing_is_over_after_a_power_cut_too(
    tmp_path: Path, root: PurePosixPath, bundles: list[Bundle]
) -> None:
    board = start()
    for _ in range(2):
        install(bundles[0], board, root, tmp_path)
    assert_kept_without_power(board, root, bundles[0])


def test_what_was_not_flushed_is_lost_so_that_these_power_cuts_are_some() -> None:
    """The negative control: this disk forgets what nobody has flushed."""
    board = start()
    board.run(["sh", "-c", "echo kept >kept; sync; echo lost >lost"], timeout=60)
    lose_power()
    board.close()
    again = start()
    done = again.run(["sh", "-c", "cat kept; cat lost"], timeout=60)
    assert done.stdout == b"kept\n"
    again.close()


@dataclasses.dataclass
class Keeping(Wrapped):
    """A board whose disk keeps nothing of what it takes after its Nth call, and says it does."""

    at: int
    calls: int = 0
    kept: Path | None = None

    def close(self) -> None:
        pass

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        self._count()
        return self.inner.run(argv, stdin=stdin, timeout=timeout)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        self._count()
        self.inner.put(local, remote, offset=offset, timeout=timeout)

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        self._count()
        self.inner.get(remote, local, limit=limit, timeout=timeout)

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.kept = disk_of_board().with_suffix(".kept")
            subprocess.run(["cp", "--sparse=always", disk_of_board(), self.kept], check=True)


def disk_of_board() -> Path:
    return next((default_cache() / "boards" / INSTANCE).glob("disk-*.ext4"))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_a_disk_that_lied_has_a_release_that_a_rerun_replaces(
    tmp_path: Path, root: PurePosixPath, bundles: list[Bundle], share: float
) -> None:
    """ "Deployed" was said; with the power goes all that was flushed since some call before."""
    old, new = bundles
    board = start()
    calls = count_calls(new, tmp_path)
    install(old, board, root, tmp_path)
    lying = Keeping(board, round(calls * share))
    install(new, lying, root, tmp_path)
    lose_power()
    board.close()
    assert lying.kept is not None
    lying.kept.replace(disk_of_board())
    again = start()
    status = read_status(again, APP, root=root, check=True)
    assert (status.current, status.files_good) == (old.digest, True)
    install(new, again, root, tmp_path)
    status = read_status(again, APP, root=root, check=True)
    assert (status.state, status.current, status.previous) == ("ready", new.digest, old.digest)
    assert status.files_good
    again.close()


def test_a_file_of_zeros_after_a_power_cut_is_seen_and_replaced(
    tmp_path: Path, root: PurePosixPath, bundles: list[Bundle]
) -> None:
    """Its name was kept, its data were not; the program runs all the same."""
    old, new = bundles
    board = start()
    for each in bundles:
        install(each, board, root, tmp_path)
    weights = f"{root}/apps/{APP}/current/weights.bin".removeprefix("~/")
    size = (new.path / "weights.bin").stat().st_size
    script = (
        'chmod u+w "$1" && head -c "$2" /dev/zero >"$1.z" && cat "$1.z" >"$1" && rm "$1.z"; sync'
    )
    done = board.run(["sh", "-c", script, "sh", weights, str(size)], timeout=60)
    assert done.status == 0
    # The board has not started again since it was seen to be good: only who asks finds it.
    assert read_status(board, APP, root=root).state == "ready"
    assert read_status(board, APP, root=root, check=True).state == "broken"
    lose_power()
    board.close()
    again = start()
    assert read_status(again, APP, root=root).state == "broken"
    assert rollback_release(again, APP, root=root).current == old.digest
    assert read_status(again, APP, root=root).state == "ready"
    install(new, again, root, tmp_path)
    status = read_status(again, APP, root=root, check=True)
    assert (status.state, status.current, status.files_good) == ("ready", new.digest, True)
    again.close()


@pytest.mark.parametrize(
    ("happening", "share"), [("power", 0.4), ("power", 0.75), ("restart", 0.2), ("restart", 0.9)]
)
def test_a_board_that_goes_during_a_deploy_has_the_old_release_or_the_new(
    tmp_path: Path, root: PurePosixPath, bundles: list[Bundle], happening: str, share: float
) -> None:
    old, new = bundles
    board = start()
    calls = count_calls(new, tmp_path)
    install(old, board, root, tmp_path)
    happen = lose_power if happening == "power" else lambda: restart(board)
    with pytest.raises(BoardUnreachable, match="gone"):
        install(new, Failing(board, round(calls * share), happen), root, tmp_path)
    board.close()
    again = start()
    status = read_status(again, APP, root=root, check=True)
    assert status.current in {old.digest, new.digest}
    assert status.files_good
    install(new, again, root, tmp_path)
    status = read_status(again, APP, root=root, check=True)
    assert (status.state, status.current, status.files_good) == ("ready", new.digest, True)
    assert read_history(again, APP, root=root)[-1].digest == new.digest
    left = files_below(again, str(status.root))
    assert not [name for name in left if ".tmp-" in name or ".part" in name or "/run-" in name]
    again.close()


def test_a_restart_voids_what_is_measured_and_ends_the_lease(
    tmp_path: Path, root: PurePosixPath, bundles: list[Bundle]
) -> None:
    board = start()
    boot = read_facts(board).boot_id
    with hold(board, root, owner="first", seconds=900) as lease:
        facts = read_facts(lease.board)
        release = stage_bundle(bundles[0], lease.board, facts=facts, app=APP, root=root)
        # Right after the program has run, before its outputs were fetched.
        failing = Failing(board, 3, lambda: restart(board))
        with pytest.raises(BoardUnreachable):
            measure_release(
                release,
                bundles[0],
                failing,
                feeds={"x": samples_of(1)},
                warmup=0,
                iterations=5,
                threads=1,
                directory=tmp_path,
            )
        with pytest.raises(LeaseLost):
            lease.confirm()
    again = start()
    assert read_facts(again).boot_id != boot
    with hold(again, root, owner="second", seconds=900) as lease:
        assert lease.fence >= 2
        release = stage_bundle(bundles[0], lease.board, facts=facts, app=APP, root=root)
        measured, _ = measure_release(
            release,
            bundles[0],
            lease.board,
            feeds={"x": samples_of(1)},
            warmup=0,
            iterations=5,
            threads=1,
            directory=tmp_path,
        )
        assert measured.invalid == ()
        assert measured.boot_id != boot
    again.close()


@dataclasses.dataclass
class Wedged(Wrapped):
    """A board that lets us in and runs nothing but a restart, until it has restarted."""

    boot: str
    obeys: bool

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        wedged = read_facts(self.inner).boot_id == self.boot
        if wedged and not ("reboot" in argv[-1] and self.obeys):
            return Completed(tuple(argv), 254, b"sh: Cannot fork\n", b"")
        return self.inner.run(argv, stdin=stdin, timeout=timeout)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        raise AssertionError

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        raise AssertionError


@pytest.mark.parametrize("obeys", [True, False], ids=["restart", "power"])
def test_a_wedged_board_is_brought_back_with_its_releases_by_the_step_that_it_takes(
    tmp_path: Path, root: PurePosixPath, bundles: list[Bundle], obeys: bool
) -> None:
    board = start()
    install(bundles[0], board, root, tmp_path)
    boot = read_facts(board).boot_id
    board.close()
    power = tmp_path / "power.py"
    power.write_text(
        "from edgeopt.board.emulator import cut_power, start_board\n"
        "from tests.hil.test_power import INSTANCE, TARGET\n"
        "assert cut_power(INSTANCE)\n"
        "start_board(TARGET, instance=INSTANCE, icount=False, keep=True)\n"
    )
    command = ["env", f"PYTHONPATH={Path(__file__).parents[2]}", sys.executable, str(power)]
    took = recover_board(lambda: Wedged(start(), boot, obeys), root, power=command)
    assert took == ("it was restarted" if obeys else "its power was cycled")
    again = start()
    assert read_facts(again).boot_id != boot
    status = read_status(again, APP, root=root, check=True)
    assert (status.current, status.files_good) == (bundles[0].digest, True)
    again.close()


def test_the_kernel_kills_what_exceeds_a_memory_limit() -> None:
    board = start()
    assert try_memory_limit(board) == "enforced"
    done = board.run(["find", "/sys/fs/cgroup", "-name", "edgeopt-*"], timeout=60)
    assert done.stdout == b""
    board.close()


def test_the_least_memory_that_a_release_runs_in_is_what_the_kernel_enforces(
    tmp_path: Path, root: PurePosixPath
) -> None:
    """The program asks for as much as 24 MB more, all at once, and fills it."""
    board = start()
    bundle = bundle_for_board(tmp_path / "a", mode="fills")
    facts = read_facts(board)
    release = stage_bundle(bundle, board, facts=facts, app=APP, root=root)

    def confine(peak: int) -> Confinement:
        return confine_release(
            release,
            bundle,
            board,
            feeds={"x": samples_of(1)},
            threads=1,
            peak=peak,
            directory=tmp_path,
        )

    found = confine(32 << 20)
    assert 23 << 20 < found.smallest < 30 << 20
    assert 4 <= found.tries <= 9
    with pytest.raises(BudgetExceeded, match="twice the memory"):
        confine(4 << 20)
    bundle = bundle_for_board(tmp_path / "b", mode="killed")
    release = stage_bundle(bundle, board, facts=facts, app=APP, root=root)
    with pytest.raises(DeployFailed, match="another program killed it"):
        confine(32 << 20)
    done = board.run(["find", "/sys/fs/cgroup", "-name", "edgeopt-*"], timeout=60)
    assert done.stdout == b""
    board.close()
