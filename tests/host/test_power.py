"""What a disk holds when power fails, and boards of little: no rights, no space, a slow network."""

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.artifact import Bundle
from edgeopt.board.local import LocalBoard
from edgeopt.board.ssh import open_ssh
from edgeopt.deploy import read_status, rollback_release
from edgeopt.errors import DeployFailed, RollbackFailed
from edgeopt.testing import FaultProxy
from tests.conftest import Sshd
from tests.deploy.kit import (
    APP,
    DyingBoard,
    assert_whole,
    deploy,
    layers,
    leftovers,
    link_of,
    make_bundle,
)
from tests.host.test_deploy import fill

pytestmark = pytest.mark.host

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root; run: sudo pytest")


class Disk:
    """An ext4 file system in a file: what was not flushed is not in it yet."""

    def __init__(self, folder: Path) -> None:
        self.image, self.point = folder / "disk.img", folder / "disk"
        self.point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(48 << 20)
        subprocess.run(["mke2fs", "-q", "-F", "-m", "0", "-t", "ext4", str(self.image)], check=True)

    def mount(self) -> bool:
        # Its journal commits by itself after five minutes, not five seconds.
        argv = ["mount", "-o", "loop,commit=300", str(self.image), str(self.point)]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.point)], check=True)

    def keep(self) -> Path:
        """Keep what the device has at this moment, without what the system still holds."""
        kept = self.image.with_name("kept.img")
        shutil.copyfile(self.image, kept)
        return kept

    def cut_power(self, kept: Path | None = None) -> None:
        """Go on with what the device has; one that lied has no more than it had earlier (kept)."""
        kept = kept or self.keep()
        self.unmount()
        kept.replace(self.image)
        assert self.mount()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.skip("mounting needs root; run: sudo pytest")
    if shutil.which("mke2fs") is None:
        pytest.skip("no mke2fs; run: sudo apt-get install -y e2fsprogs")
    made = Disk(tmp_path)
    if not made.mount():
        pytest.skip("this container may not mount; run on a machine that may")
    yield made
    made.unmount()


def test_a_release_survives_a_power_cut_right_after_the_deploy(tmp_path: Path, disk: Disk) -> None:
    root = disk.point / "edgeopt"
    old = make_bundle(tmp_path / "a", weights=layers())
    new = make_bundle(tmp_path / "b", weights=layers(layer_2=9))
    for each in (old, new):
        deploy(each, LocalBoard(), root, tmp_path / "w")
        disk.cut_power()
        assert link_of(root) == each.digest
        assert_whole(root, each.digest)
    assert link_of(root, "previous") == old.digest
    assert_whole(root, old.digest)


def test_without_flushing_a_power_cut_loses_the_release(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test above: it would see a missing flush."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sync").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)
    root = disk.point / "edgeopt"
    deploy(make_bundle(tmp_path / "a", weights=layers()), LocalBoard(), root, tmp_path / "w")
    disk.cut_power()
    assert link_of(root) == ""


def rehearse(tmp_path: Path, root: Path) -> tuple[Bundle, Bundle, int]:
    """Deploy one release below root; return it, another one, and the calls that deploying it is."""
    old = make_bundle(tmp_path / "a", weights=layers())
    new = make_bundle(tmp_path / "b", weights=layers(layer_2=9))
    deploy(old, LocalBoard(), root, tmp_path / "w")
    rehearsal = DyingBoard(LocalBoard())
    deploy(new, rehearsal, tmp_path / "rehearsal", tmp_path / "w")
    return old, new, len(rehearsal.calls)


@pytest.mark.parametrize("moment", range(6))
def test_a_power_cut_during_a_deploy_has_the_old_release_or_the_new(
    tmp_path: Path, disk: Disk, moment: int
) -> None:
    root = disk.point / "edgeopt"
    old, new, calls = rehearse(tmp_path, root)
    at = calls * (moment + 1) // 7
    board = DyingBoard(LocalBoard(), at=at, moment="after")
    with pytest.raises(Exception, match="gone"):
        deploy(new, board, root, tmp_path / "w")
    disk.cut_power()
    assert link_of(root) in {old.digest, new.digest}
    assert_whole(root, link_of(root))
    deploy(new, LocalBoard(), root, tmp_path / "w")
    assert link_of(root) == new.digest
    assert_whole(root, new.digest)
    assert leftovers(root) == []


@dataclass
class Lying(DyingBoard):
    """A board whose disk keeps nothing of what it takes after the Nth call, and says it does."""

    lies: int = -1
    disk: Disk | None = None
    kept: Path | None = None

    def _enter(self, what: str) -> bool:
        due = super()._enter(what)
        if len(self.calls) == self.lies and self.disk is not None:
            self.kept = self.disk.keep()
        return due


@pytest.mark.parametrize("moment", range(6))
def test_a_disk_that_lied_about_its_last_writes_has_a_release_that_a_rerun_replaces(
    tmp_path: Path, disk: Disk, moment: int
) -> None:
    """ "Deployed" was said; the power cut takes all that was flushed since some call before."""
    root = disk.point / "edgeopt"
    old, new, calls = rehearse(tmp_path, root)
    board = Lying(LocalBoard(), lies=calls * (moment + 1) // 7, disk=disk)
    deploy(new, board, root, tmp_path / "w")
    assert board.kept is not None
    disk.cut_power(board.kept)
    found = read_status(LocalBoard(), APP, root=PurePosixPath(root), check=True)
    assert found.current in {old.digest, new.digest}
    assert found.files_good
    deploy(new, LocalBoard(), root, tmp_path / "w")
    assert_whole(root, new.digest)
    assert leftovers(root) == []
    assert rollback_release(LocalBoard(), APP, root=PurePosixPath(root)).current == old.digest
    assert_whole(root, old.digest)


@pytest.mark.parametrize("name", ["weights.bin", "manifest.json", "sha256sums", "edgeopt-run"])
def test_a_file_of_zeros_after_a_restart_is_seen_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its name and its size were kept, its data were not; the program may run all the same."""
    root, place = tmp_path / "board", PurePosixPath(tmp_path / "board")
    old, new = (make_bundle(tmp_path / str(seed), seed=seed) for seed in range(2))
    for each in (old, new):
        deploy(each, LocalBoard(), root, tmp_path / "w")
    release = root / "apps" / APP / "releases" / new.digest
    damaged = release / name
    mode = damaged.stat().st_mode
    damaged.chmod(0o600)
    with damaged.open("r+b") as file:
        file.write(bytes(damaged.stat().st_size))
    damaged.chmod(mode)
    # What the board was seen to hold was seen before it started again.
    (release / "boot").write_text("another start of the board\n")
    found = read_status(LocalBoard(), APP, root=place)
    assert (found.state, found.files_good) == ("broken", False)
    assert "deploy again" in found.meaning
    sent = deploy(new, LocalBoard(), root, tmp_path / "w").sent
    assert sent == (0 if name == "sha256sums" else (new.path / name).stat().st_size)
    assert_whole(root, new.digest)
    found = read_status(LocalBoard(), APP, root=place)
    assert (found.state, found.files_good, found.current) == ("ready", None, new.digest)
    assert_whole(root, old.digest)
    weights = release / "weights.bin"
    weights.chmod(0o600)
    weights.write_bytes(b"")
    # The one before is whole, and is found to be so before it is relied on.
    assert rollback_release(LocalBoard(), APP, root=place).current == old.digest
    with pytest.raises(RollbackFailed, match="cannot be restored"):
        rollback_release(LocalBoard(), APP, root=place)
    assert link_of(root) == old.digest


def test_a_release_that_was_found_damaged_is_no_way_back(tmp_path: Path) -> None:
    root, place = tmp_path / "board", PurePosixPath(tmp_path / "board")
    good, damaged, new = (make_bundle(tmp_path / str(seed), seed=seed) for seed in range(3))
    for each in (good, damaged):
        deploy(each, LocalBoard(), root, tmp_path / "w")
    release = root / "apps" / APP / "releases" / damaged.digest
    (release / "weights.bin").chmod(0o600)
    (release / "weights.bin").write_bytes(bytes(40_005))
    (release / "boot").write_text("another start of the board\n")
    deploy(new, LocalBoard(), root, tmp_path / "w")
    assert (link_of(root), link_of(root, "previous")) == (new.digest, good.digest)
    assert rollback_release(LocalBoard(), APP, root=place).current == good.digest
    assert leftovers(root) == []


def test_a_quota_that_ends_an_upload_keeps_the_old_release(tmp_path: Path) -> None:
    """The file system has room, so that nothing is refused before; the account may not use it."""
    root = tmp_path / "disk"
    root.mkdir()
    if os.geteuid() != 0 or shutil.which("mkfs.btrfs") is None:
        pytest.skip("quotas need root and btrfs; run: sudo apt-get install -y btrfs-progs")
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.btrfs", "-q", "-m", "single", image], check=True)
    mounted = ["mount", "-o", "loop", str(image), str(root)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
        pytest.skip("this kernel mounts no btrfs; run on one that does")
    try:
        for argv in (["quota", "enable"], ["qgroup", "limit", "4M"]):
            subprocess.run(["btrfs", *argv, str(root)], check=True, capture_output=True)
        with pytest.raises(OSError, match="quota") as caught:
            (root / "too much").write_bytes(bytes(5 << 20))
        assert caught.value.errno == errno.EDQUOT
        (root / "too much").unlink()
        subprocess.run(["btrfs", "filesystem", "sync", root], check=True, capture_output=True)
        old = make_bundle(tmp_path / "a")
        new = make_bundle(tmp_path / "b", seed=1, size=8_000_000)
        deploy(old, LocalBoard(), root / "edgeopt", tmp_path / "w")
        with pytest.raises(DeployFailed, match=r"could not store weights\.bin") as failed:
            deploy(new, LocalBoard(), root / "edgeopt", tmp_path / "w")
        assert "quota" in (failed.value.why or "").lower()
        assert link_of(root / "edgeopt") == old.digest
        assert_whole(root / "edgeopt", old.digest)
        assert list((root / "edgeopt" / "objects").glob("*.part")) == []
        subprocess.run(["btrfs", "qgroup", "limit", "none", root], check=True)
        deploy(new, LocalBoard(), root / "edgeopt", tmp_path / "w")
        assert_whole(root / "edgeopt", new.digest)
        assert leftovers(root / "edgeopt") == []
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def test_a_disk_that_fills_while_a_file_is_put_together_keeps_the_old_release(
    tmp_path: Path, disk: Disk
) -> None:
    root = disk.point / "edgeopt"
    old = make_bundle(tmp_path / "a", weights=layers())
    new = make_bundle(tmp_path / "b", weights=layers(layer_2=9))
    deploy(old, LocalBoard(), root, tmp_path / "w")

    def hog(content: bytes) -> bytes:
        if len(content) > 400_000:
            fill(disk.point / "hog", leave=1_500_000)
        return content

    with pytest.raises(DeployFailed):
        deploy(new, DyingBoard(LocalBoard(), spoil=hog), root, tmp_path / "w")
    assert link_of(root) == old.digest
    assert_whole(root, old.digest)
    assert list(root.glob("objects/*.part")) == []
    (disk.point / "hog").unlink()
    deploy(new, LocalBoard(), root, tmp_path / "w")
    assert_whole(root, new.digest)
    assert leftovers(root) == []


def as_nobody(work: Callable[[], None]) -> int:
    """Run something in a process without any rights; return its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@needs_root
def test_an_account_without_rights_can_do_all_of_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("nobody")
    for each in (folder, *folder.parents):
        if each == Path(tempfile.gettempdir()):
            break
        each.chmod(each.stat().st_mode | 0o055)
    bundles: list[Bundle] = [make_bundle(folder / str(seed), seed=seed) for seed in range(2)]
    home = folder / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)

    def work() -> None:
        for each in bundles:
            deploy(each, LocalBoard(home=home), home / "board", home / "w")

    assert as_nobody(work) == 0
    assert link_of(home / "board") == bundles[1].digest
    assert (home / "board" / "apps" / APP).stat().st_uid == 65534


def test_a_deploy_over_a_slow_link_with_long_ways_completes(tmp_path: Path, sshd: Sshd) -> None:
    """64 kB/s each way and 250 ms for every answer: nothing times out, nothing is sent twice."""
    root = tmp_path / "board"
    bundle = make_bundle(tmp_path / "a", size=150_000)
    with FaultProxy(sshd.port, delay=0.125) as proxy:
        board = open_ssh("board", ssh_config=sshd.write_config(tmp_path / "c", port=proxy.port))
        begun = time.monotonic()
        release = deploy(bundle, board, root, tmp_path / "w")
        assert time.monotonic() - begun > 5
        assert board.reconnects == 0
        board.close()
    assert release.sent == sum(path.stat().st_size for path in bundle.path.iterdir())
    assert_whole(root, bundle.digest)
