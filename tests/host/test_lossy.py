"""A deploy over a link that loses packets, whose ways are long, and that carries little."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeopt.board.ssh import open_ssh
from tests.conftest import SSHD, Sshd, start_server
from tests.deploy.kit import assert_whole, deploy, leftovers, make_bundle
from tests.host.lossy import End, Link

pytestmark = pytest.mark.host

BOARD = "10.99.0.2"


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("networks of their own need root and ip(8); run: sudo pytest")
    made: list[End] = []
    try:
        for address in ("10.99.0.1", BOARD):
            made.append(End(address))
    except OSError as error:
        pytest.skip(f"this container may not make networks: {error}; run on a machine that may")
    yield made[0], made[1]
    for each in made:
        each.close()


@pytest.fixture
def board(ends: tuple[End, End], tmp_path: Path) -> Iterator[Sshd]:
    if SSHD is None:
        pytest.skip("no OpenSSH server here; run: sudo apt-get install -y openssh-server")
    folder = tmp_path / "sshd"
    folder.mkdir()
    server, process = ends[1].call(
        lambda: start_server(folder, f"ListenAddress {BOARD}:2222\nAddressFamily inet")
    )
    yield server
    process.terminate()
    process.wait(10)


def write_config(server: Sshd, path: Path) -> Path:
    """Write an ssh_config of the board's address on the link."""
    known = path.with_name("known")
    known.write_text(f"[{BOARD}]:2222 {server.host_key}\n")
    text = server.write_config(path).read_text()
    text = text.replace("127.0.0.1", BOARD).replace(f"Port {server.port}", "Port 2222")
    path.write_text(f"Host *\n  UserKnownHostsFile {known}\n{text}")
    return path


def test_a_deploy_over_a_link_that_loses_packets_completes(
    tmp_path: Path, ends: tuple[End, End], board: Sshd
) -> None:
    """One packet of a hundred is lost, an answer takes 300 ms, and 64 kB pass in a second."""
    root = tmp_path / "board"
    bundle = make_bundle(tmp_path / "a", size=1_500_000)
    config = write_config(board, tmp_path / "config")

    def run() -> int:
        live = open_ssh("board", ssh_config=config)
        try:
            release = deploy(bundle, live, root, tmp_path / "w")
            assert live.reconnects == 0
        finally:
            live.close()
        return release.sent

    with Link(ends, loss=0.01, delay=0.15, rate=64e3, seed=5) as link:
        begun = time.monotonic()
        sent = ends[0].call(run)
        took = time.monotonic() - begun
    # Nothing was sent twice by us: what was lost TCP has sent again.
    assert sent == sum(path.stat().st_size for path in bundle.path.iterdir())
    assert took > sent / 64e3
    assert link.lost >= 10
    assert 0.003 < link.lost / (link.lost + link.passed) < 0.03
    assert ends[0].retransmitted() + ends[1].retransmitted() >= 10
    assert_whole(root, bundle.digest)
    assert leftovers(root) == []
