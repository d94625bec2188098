"""Releases behind a real OpenSSH server: what fails after the switch, no way back, who signed."""

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.artifact import Bundle
from edgeopt.board.ssh import SshBoard, open_ssh
from edgeopt.deploy import (
    Signer,
    activate_release,
    read_allowed,
    read_history,
    read_status,
    rollback_release,
    sign_release,
    stage_bundle,
)
from edgeopt.errors import BoardIncompatible, DeployFailed, RollbackFailed
from tests.conftest import Sshd
from tests.deploy.kit import (
    APP,
    assert_whole,
    board_facts,
    deploy,
    leftovers,
    link_of,
    make_bundle,
    objects_of,
)
from tests.deploy.test_signature import make_key

pytestmark = pytest.mark.host


@pytest.fixture
def board(sshd: Sshd, tmp_path: Path) -> Iterator[SshBoard]:
    found = open_ssh("board", ssh_config=sshd.write_config(tmp_path / "ssh_config"))
    yield found
    assert found.reconnects == 0
    found.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "board"


def test_a_program_that_fails_once_it_is_current_is_taken_back(
    tmp_path: Path, root: Path, board: SshBoard
) -> None:
    """It runs well where it was staged; where `current` leads to it, it does not."""
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    bad = make_bundle(tmp_path / "c", seed=2, mode="current")
    for each in (one, two):
        deploy(each, board, root, tmp_path / "w")
    with pytest.raises(DeployFailed, match="the device program failed") as caught:
        deploy(bad, board, root, tmp_path / "w")
    assert (caught.value.why, caught.value.exit_code) == ("status 1: not here", 10)
    assert (link_of(root), link_of(root, "previous")) == (two.digest, one.digest)
    assert_whole(root, two.digest)
    history = read_history(board, APP, root=PurePosixPath(root))
    assert [(each.action, each.digest) for each in history][2:] == [
        ("deploy", bad.digest),
        ("restore", two.digest),
    ]
    assert rollback_release(board, APP, root=PurePosixPath(root)).current == one.digest
    deploy(two, board, root, tmp_path / "w")
    assert leftovers(root) == []
    assert {path.name for path in (root / "objects").iterdir()} == objects_of(one, two)


def test_what_is_no_way_back_is_refused_and_a_failed_first_deploy_leaves_no_link(
    tmp_path: Path, root: Path, board: SshBoard
) -> None:
    place = PurePosixPath(root)
    for mode in ("nan", "current"):
        with pytest.raises(DeployFailed):
            deploy(make_bundle(tmp_path / mode, mode=mode), board, root, tmp_path / "w")
        assert link_of(root) == link_of(root, "previous") == ""
        assert read_status(board, APP, root=place).state == "empty"
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    deploy(one, board, root, tmp_path / "w")
    with pytest.raises(RollbackFailed, match="no previous release"):
        rollback_release(board, APP, root=place)
    deploy(two, board, root, tmp_path / "w")
    weights = root / "apps" / APP / "releases" / one.digest / "weights.bin"
    weights.chmod(0o600)
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(RollbackFailed, match="cannot be restored") as caught:
        rollback_release(board, APP, root=place)
    assert caught.value.exit_code == 11
    assert link_of(root) == two.digest
    assert_whole(root, two.digest)
    shutil.rmtree(root / "apps" / APP / "releases" / one.digest)
    with pytest.raises(RollbackFailed):
        rollback_release(board, APP, root=place)
    assert link_of(root) == two.digest


def install(key: Path, bundle: Bundle, board: SshBoard, root: Path, serial: int) -> bool:
    place = PurePosixPath(root)
    staged = stage_bundle(bundle, board, facts=board_facts(), app=APP, root=place)
    signed = sign_release(Signer(key), app=APP, digest=bundle.digest, target="here", serial=serial)
    return activate_release(staged, board, signed=signed).verified


@pytest.mark.skipif(
    shutil.which("ssh-keygen") is None,
    reason="no ssh-keygen; run: sudo apt-get install -y openssh-client",
)
def test_a_release_that_is_unsigned_old_or_signed_by_another_is_refused_by_the_board(
    tmp_path: Path, root: Path, board: SshBoard
) -> None:
    ours, other = make_key(tmp_path / "ours"), make_key(tmp_path / "other")
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    place = PurePosixPath(root)
    # True: the board has verified it by itself.
    assert install(ours, one, board, root, 5)
    staged = stage_bundle(two, board, facts=board_facts(), app=APP, root=place)
    with pytest.raises(DeployFailed, match="is not signed"):
        activate_release(staged, board)
    with pytest.raises(DeployFailed, match="signed by nobody who is allowed"):
        install(other, two, board, root, 6)
    with pytest.raises(DeployFailed, match="older than one that was current") as caught:
        install(ours, two, board, root, 4)
    assert caught.value.exit_code == 10
    assert link_of(root) == one.digest
    assert_whole(root, one.digest)
    assert install(ours, two, board, root, 6)
    assert link_of(root) == two.digest
    allowed = read_allowed(Signer(other))
    with pytest.raises(RollbackFailed):
        rollback_release(board, APP, root=place, allowed=allowed)
    assert link_of(root) == two.digest


def test_a_release_for_another_machine_is_refused_before_a_byte_is_sent(
    tmp_path: Path, root: Path, board: SshBoard
) -> None:
    bundle = make_bundle(tmp_path / "a").model_copy(update={"machine": "riscv64"})
    with pytest.raises(BoardIncompatible, match="cannot run what was compiled") as caught:
        deploy(bundle, board, root, tmp_path / "w")
    assert caught.value.exit_code == 7
    assert not root.exists()
