"""Promises of SECURITY.md against a real OpenSSH server and the file system."""

import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board.connect import Patience
from edgeopt.board.lease import hold
from edgeopt.board.local import LocalBoard
from edgeopt.board.ssh import open_ssh
from edgeopt.errors import BoardUnreachable
from tests.conftest import Sshd
from tests.deploy.kit import deploy, layers, make_bundle
from tests.deploy.test_signature import make_key
from tests.host.test_deploy_command import User, _shared_toolchain, user
from tests.host.test_ssh import connect

__all__ = ["_shared_toolchain", "user"]
pytestmark = pytest.mark.host


@pytest.mark.parametrize(
    "options",
    [
        "Ciphers 3des-cbc,aes256-cbc",
        "Ciphers aes128-ctr\nMACs hmac-sha1,hmac-md5",
        "KexAlgorithms diffie-hellman-group14-sha1",
    ],
)
def test_a_server_of_weak_algorithms_only_is_refused(
    start_sshd: Callable[..., Sshd], tmp_path: Path, options: str
) -> None:
    weak = start_sshd(options)
    with pytest.raises(BoardUnreachable, match="does not complete an SSH handshake"):
        open_ssh("board", ssh_config=weak.write_config(tmp_path / "config"))


def test_an_agent_with_more_keys_than_the_server_takes_ends_in_one_error(
    start_sshd: Callable[..., Sshd], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_sshd("MaxAuthTries 4")
    place = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    try:
        while not place.exists():
            time.sleep(0.05)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
        for number in range(8):
            key = make_key(tmp_path / f"key{number}")
            subprocess.run(["ssh-add", "-q", str(key)], check=True, capture_output=True)
        config = server.write_config(tmp_path / "config")
        text = config.read_text().replace("IdentitiesOnly yes", "IdentitiesOnly no")
        config.write_text(text.replace(str(server.identity), str(tmp_path / "absent")))
        begun = time.monotonic()
        with pytest.raises(BoardUnreachable, match="cannot log in as") as caught:
            connect(config, patience=Patience(connect=10.0, silence=10.0)).connect()
        assert time.monotonic() - begun < 20
        assert 3 <= caught.value.why.count("(agent)") <= 5
    finally:
        agent.terminate()
        agent.wait(10)


def test_nothing_on_a_board_is_open_to_other_accounts_whatever_its_umask(tmp_path: Path) -> None:
    root = tmp_path / "board"
    before = os.umask(0)
    try:
        board = LocalBoard()
        with hold(board, PurePosixPath(root), owner="x", seconds=60):
            one = make_bundle(tmp_path / "a", weights=layers(2))
            deploy(one, board, root, tmp_path / "w")
            deploy(make_bundle(tmp_path / "b", weights=layers(2, layer_1=9)), board, root, tmp_path)
            found = {path: path.lstat().st_mode for path in (root, *root.rglob("*"))}
    finally:
        os.umask(before)
    assert len(found) > 12
    for path, mode in found.items():
        assert stat.S_ISLNK(mode) or not mode & 0o077, path


def test_what_a_board_is_told_on_stdin_lies_in_no_folder_that_others_can_write(
    start_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    server = start_sshd(f'ForceCommand cd {home}; exec sh -c "$SSH_ORIGINAL_COMMAND"')
    board = connect(server.write_config(tmp_path / "config"))
    done = board.run(["readlink", "/proc/self/fd/0"], stdin=b"secret", timeout=30)
    assert done.stdout.decode().startswith(f"{home}/.edgeopt.")
    assert list(home.iterdir()) == []
    board.close()


def test_a_model_with_a_hostile_name_runs_nothing(user: User) -> None:
    name = "m'; touch x; echo '.onnx"
    (user.project / "edgeopt.toml").unlink()
    (user.project / "tiny.onnx").rename(user.project / name)
    done = user.types("deploy", "--no-reference", "--model", name)
    assert done.returncode == 0, done.stderr
    assert list(user.home.rglob("x")) == []
    apps = [path.name for path in (user.home / ".edgeopt" / "apps").iterdir()]
    assert apps == ["m---touch-x--echo"]


def test_a_private_key_is_in_no_output_and_no_file(user: User) -> None:
    key = make_key(user.home / "signing")
    done = user.types("deploy", "--json", "--no-reference", "--sign", str(key))
    assert done.returncode == 0, done.stderr
    secret = key.read_text().splitlines()[2]
    written = [path for path in user.home.rglob("*") if path.is_file() and path != key]
    assert len(written) > 10
    assert secret not in done.stdout + done.stderr
    assert all(secret.encode() not in path.read_bytes() for path in written)
