"""Deploy against this machine's own file systems, shells and signals."""

import contextlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import paramiko
import pytest

from edgeopt.artifact import Bundle
from edgeopt.board import Board
from edgeopt.board.destination import read_route
from edgeopt.board.local import LocalBoard
from edgeopt.board.ssh import SshBoard, open_ssh
from edgeopt.deploy import read_history, rollback_release
from edgeopt.errors import BoardIncompatible, BoardUnreachable, DeployFailed
from edgeopt.testing import FaultProxy
from tests.conftest import Sshd
from tests.deploy.kit import (
    APP,
    DyingBoard,
    assert_whole,
    deploy,
    leftovers,
    link_of,
    make_bundle,
    objects_of,
)

pytestmark = pytest.mark.host

Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount small file systems in memory with the given options."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; run: sudo pytest tests/host/test_deploy.py")
    points: list[Path] = []

    def make(options: str) -> Path:
        point = tmp_path / f"mounted-{len(points)}"
        point.mkdir()
        argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)]
        if subprocess.run(argv, capture_output=True, check=False).returncode != 0:
            pytest.skip("this container may not mount; run on a machine that may")
        points.append(point)
        return point

    yield make
    for point in points:
        # A server may still be ending a session that has a file there open.
        subprocess.run(["umount", "-l", str(point)], check=True)


@pytest.fixture(params=["this machine", "sshd"])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Board]:
    """This machine, as it is and behind a real OpenSSH server."""
    if request.param == "this machine":
        yield LocalBoard()
        return
    server: Sshd = request.getfixturevalue("sshd")
    found = open_ssh("board", ssh_config=server.write_config(tmp_path / "ssh_config"))
    yield found
    assert found.reconnects == 0
    found.close()


def free_bytes(path: Path) -> int:
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def fill(path: Path, leave: int) -> None:
    """Write zeros until only so many bytes are free."""
    with path.open("ab") as file:
        file.write(bytes(max(free_bytes(path.parent) - leave, 0)))


def test_a_disk_without_enough_space_is_refused_before_anything_is_sent(
    tmp_path: Path, mount: Mount, board: Board
) -> None:
    disk = mount("size=6m")
    bundle = make_bundle(tmp_path / "a", size=5_000_000)
    watched = DyingBoard(board)
    with pytest.raises(BoardIncompatible, match=r"needs 7\.\d+ MB, 6\.\d+ MB are free"):
        deploy(bundle, watched, disk / "edgeopt", tmp_path / "w")
    assert "put" not in watched.calls
    assert list(disk.iterdir()) == []


# SFTP says nothing of the smaller one to a client that reads a reply to every hundredth write.
@pytest.mark.parametrize("size", [2_500_000, 5_000_000])
def test_a_disk_that_fills_during_the_upload_keeps_the_old_release(
    tmp_path: Path, mount: Mount, board: Board, size: int
) -> None:
    disk = mount("size=10m")
    root = disk / "edgeopt"
    one = make_bundle(tmp_path / "a")
    two = make_bundle(tmp_path / "b", seed=1, size=size)
    deploy(one, board, root, tmp_path / "w")

    def hog(content: bytes) -> bytes:
        fill(disk / "hog", leave=1_000_000)
        return content

    with pytest.raises(DeployFailed, match=r"could not store weights\.bin") as caught:
        deploy(two, DyingBoard(board, spoil=hog), root, tmp_path / "w")
    assert re.search("is the disk full|No space left", caught.value.why)
    assert caught.value.exit_code == 10
    assert link_of(root) == one.digest
    assert_whole(root, one.digest)
    assert list(root.glob("objects/*.part")) == []
    (disk / "hog").unlink()
    deploy(two, board, root, tmp_path / "w")
    assert_whole(root, two.digest)
    assert leftovers(root) == []


def test_a_small_file_on_a_full_disk_is_never_taken_for_stored(
    tmp_path: Path, mount: Mount, sshd: Sshd
) -> None:
    """The negative control comes first: this server lets paramiko's own client believe it is."""
    disk = mount("size=4m")
    fill(disk / "hog", leave=1 << 20)
    sent = tmp_path / "sent"
    sent.write_bytes(random.Random(5).randbytes(2_500_000))
    config = sshd.write_config(tmp_path / "config")
    with paramiko.SSHClient() as client:
        client.load_host_keys(str(tmp_path / "config.board.known"))
        client.connect("127.0.0.1", port=sshd.port, key_filename=str(sshd.identity))
        client.open_sftp().put(str(sent), str(disk / "cut"), confirm=False)
    assert (disk / "cut").stat().st_size == 1 << 20
    (disk / "cut").unlink()
    board = open_ssh("board", ssh_config=config)
    with pytest.raises(BoardIncompatible, match="is the disk full"):
        board.put(sent, PurePosixPath(disk / "there"), timeout=60)
    board.close()


def test_a_disk_without_a_byte_left_refuses_a_deploy_and_allows_a_rollback(
    tmp_path: Path, mount: Mount, board: Board
) -> None:
    disk = mount("size=10m")
    root = disk / "edgeopt"
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    for each in (one, two):
        deploy(each, board, root, tmp_path / "w")
    fill(disk / "hog", leave=0)
    with pytest.raises(BoardIncompatible, match="are free"):
        deploy(make_bundle(tmp_path / "c", seed=2), board, root, tmp_path / "w")
    assert link_of(root) == two.digest
    assert rollback_release(board, APP, root=PurePosixPath(root)).current == one.digest
    assert_whole(root, one.digest)
    (disk / "hog").unlink()
    assert rollback_release(board, APP, root=PurePosixPath(root)).current == two.digest
    assert leftovers(root) == []


@pytest.mark.parametrize("options", ["ro", "noexec", "ro,noexec"])
def test_a_file_system_that_cannot_hold_programs_is_refused_by_name(
    tmp_path: Path, mount: Mount, board: Board, options: str
) -> None:
    root = mount(options) / "edgeopt"
    with pytest.raises(BoardIncompatible) as caught:
        deploy(make_bundle(tmp_path / "a"), board, root, tmp_path / "w")
    assert str(root) in caught.value.why
    assert ("noexec" in caught.value.why) == ("noexec" in options)
    assert ("read-only" in caught.value.why) == ("ro" in options.split(","))
    assert "deploy_dir" in caught.value.fix


def test_a_file_system_without_inodes_is_refused(
    tmp_path: Path, mount: Mount, board: Board
) -> None:
    root = mount("size=10m,nr_inodes=12") / "edgeopt"
    with pytest.raises(BoardIncompatible, match="inodes"):
        deploy(make_bundle(tmp_path / "a"), board, root, tmp_path / "w")


def test_every_script_runs_in_busybox_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox here; run: apt-get install busybox-static")
    applets = tmp_path / "bin"
    applets.mkdir()
    names = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    for name in names.stdout.split():
        (applets / name).symlink_to(busybox)
    monkeypatch.setenv("PATH", str(applets))
    root = tmp_path / "board"
    bundles = [make_bundle(tmp_path / str(seed), seed=seed) for seed in range(3)]
    for each in bundles:
        deploy(each, LocalBoard(), root, tmp_path / "w")
    assert rollback_release(LocalBoard(), APP, root=PurePosixPath(root)).state == "ready"
    program = root / "apps" / APP / "current" / "edgeopt-run"
    program.chmod(0o700)
    program.write_bytes(b"exit 3\n")
    assert deploy(bundles[1], LocalBoard(), root, tmp_path / "w").sent > 0
    assert_whole(root, link_of(root))
    assert leftovers(root) == []
    assert {path.name for path in (root / "objects").iterdir()} == objects_of(*bundles[1:])


@pytest.mark.parametrize("at_byte", [8_000, 40_000, 150_000, 350_000, 420_000, 440_000])
def test_a_network_that_dies_at_any_byte_leaves_a_whole_release_and_a_rerun_resumes(
    tmp_path: Path, sshd: Sshd, at_byte: int
) -> None:
    root = tmp_path / "board"
    old = make_bundle(tmp_path / "old")
    new = make_bundle(tmp_path / "new", seed=1, size=400_000)
    deploy(old, LocalBoard(), root, tmp_path / "w")
    with FaultProxy(sshd.port, fault="reset", at_byte=at_byte) as proxy:
        config = sshd.write_config(tmp_path / "bad", port=proxy.port)
        board = SshBoard(read_route("board", ssh_config=config), name="broken")
        with contextlib.suppress(BoardUnreachable):
            deploy(new, board, root, tmp_path / "w")
        board.close()
    assert link_of(root) in {old.digest, new.digest}
    assert_whole(root, link_of(root))
    # Lists of chunks are no part of what is sent of the files.
    parts = [path for path in root.glob("objects/*.part") if ".chunks" not in path.name]
    there = sum(path.stat().st_size for path in parts)
    good = open_ssh("board", ssh_config=sshd.write_config(tmp_path / "good"))
    release = deploy(new, good, root, tmp_path / "w")
    good.close()
    assert link_of(root) == new.digest
    assert_whole(root, new.digest)
    assert leftovers(root) == []
    # Between the small files before the weights and the end of them.
    if 100_000 < at_byte < 400_000:
        assert there > 0
    if there:
        assert release.sent <= 400_005 + (new.path / "manifest.json").stat().st_size - there


def _deploy_alone(bundle: Bundle, root: Path, work: Path) -> None:
    os.setsid()
    deploy(bundle, LocalBoard(), root, work)


def processes_in(root: Path) -> list[int]:
    """Return the scripts that still work on the board although their host is gone."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(root) in command and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def test_killing_deploy_at_any_moment_leaves_a_whole_release_and_a_rerun_converges(
    tmp_path: Path,
) -> None:
    generator = random.Random(20240501)
    context = multiprocessing.get_context("fork")
    root, work = tmp_path / "board", tmp_path / "w"
    old = make_bundle(tmp_path / "start", seed=1000)
    deploy(old, LocalBoard(), root, work)
    begin = time.monotonic()
    new = make_bundle(tmp_path / "timed", seed=1001)
    deploy(new, LocalBoard(), root, work)
    usual = time.monotonic() - begin
    killed, outcomes = 0, set()
    for number in range(30):
        old, new = new, make_bundle(tmp_path / str(number), seed=number, size=100_000)
        child = context.Process(target=_deploy_alone, args=(new, root, work))
        child.start()
        time.sleep(generator.uniform(0, usual * 1.2))
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        current = link_of(root)
        assert current in {old.digest, new.digest}
        assert_whole(root, current)
        outcomes.add(current == new.digest)
        # What a lease would do: let the orphaned script end before the next deploy.
        while processes_in(root):
            time.sleep(0.02)
        assert len(list(root.glob("objects/*.part"))) <= 1
        deploy(new, LocalBoard(), root, work)
        assert (link_of(root), link_of(root, "previous")) == (new.digest, old.digest)
        assert_whole(root, new.digest)
        assert leftovers(root) == []
    assert killed >= 15
    history = read_history(LocalBoard(), APP, root=PurePosixPath(root), limit=1000)
    assert len(history) == 32
    assert {path.name for path in (root / "objects").iterdir()} == objects_of(old, new)
