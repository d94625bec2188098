"""What a redeploy sends, counted in bytes where they enter the network."""

from pathlib import Path

import pytest

from edgeopt.artifact import Bundle
from edgeopt.board.ssh import open_ssh
from edgeopt.testing import FaultProxy
from tests.conftest import Sshd
from tests.deploy.kit import assert_whole, deploy, layers, make_bundle

pytestmark = pytest.mark.host

LAYER = 1_000_000


def bytes_sent(bundle: Bundle, sshd: Sshd, root: Path, work: Path) -> int:
    """Deploy over SSH; return all that the host wrote to the network, scripts included."""
    with FaultProxy(sshd.port) as proxy:
        config = work / "config"
        config.unlink(missing_ok=True)
        board = open_ssh("board", ssh_config=sshd.write_config(config, port=proxy.port))
        deploy(bundle, board, root, work / "local")
        board.close()
        return proxy.forwarded


def test_a_redeploy_after_one_layer_changed_sends_less_than_a_third_more_than_the_layer(
    tmp_path: Path, sshd: Sshd
) -> None:
    root = tmp_path / "board"
    old = make_bundle(tmp_path / "old", weights=layers(8, LAYER))
    new = make_bundle(tmp_path / "new", weights=layers(8, LAYER, layer_5=99))
    cold = bytes_sent(old, sshd, root, tmp_path)
    changed = bytes_sent(new, sshd, root, tmp_path)
    assert cold > 8 * LAYER
    assert LAYER < changed < 1.3 * LAYER
    assert_whole(root, new.digest)
    print(f"cold {cold}, one layer of {LAYER} changed {changed}: {changed / LAYER:.3f}")
