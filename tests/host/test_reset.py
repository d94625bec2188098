"""The connection to a real OpenSSH server is reset at each state of a deploy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board import Completed
from edgeopt.board.connect import Patience
from edgeopt.board.destination import read_route
from edgeopt.board.local import LocalBoard
from edgeopt.board.ssh import SshBoard, open_ssh
from edgeopt.errors import BoardUnreachable
from edgeopt.testing import FaultProxy
from tests.board.wrapped import Wrapped
from tests.conftest import Sshd
from tests.deploy.kit import assert_whole, deploy, leftovers, link_of, make_bundle
from tests.deploy.passing import STATES, Passing

pytestmark = pytest.mark.host

#: A connection that is reset is asked for again; here it is reset for ever.
PATIENCE = Patience(connect=3.0)


@dataclass
class Cut(Wrapped):
    """A board whose connection is reset by the first bytes of the first call of a state."""

    state: str
    proxy: FaultProxy
    #: The states of the calls so far, the one that is made now included.
    states: list[str] = field(default_factory=list)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        self._look()
        return self.inner.run(argv, stdin=stdin, timeout=timeout)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        self._look()
        self.inner.put(local, remote, offset=offset, timeout=timeout)

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        self._look()
        self.inner.get(remote, local, limit=limit, timeout=timeout)

    def _look(self) -> None:
        if self.states[-1] == self.state:
            self.proxy.at_byte, self.proxy.fault = self.proxy.forwarded, "reset"


@pytest.mark.parametrize("state", STATES)
def test_a_connection_that_is_reset_at_a_state_leaves_a_whole_release_and_a_rerun_converges(
    tmp_path: Path, sshd: Sshd, state: str
) -> None:
    root = tmp_path / "board"
    old = make_bundle(tmp_path / "old")
    new = make_bundle(tmp_path / "new", seed=1, size=400_000)
    deploy(old, LocalBoard(), root, tmp_path / "w")
    with FaultProxy(sshd.port) as proxy:
        config = sshd.write_config(tmp_path / "bad", port=proxy.port)
        route = read_route("board", ssh_config=config)
        board = SshBoard(route, name="broken", patience=PATIENCE)
        cut = Cut(board, state, proxy)
        passing = Passing(cut, cut.states)
        with pytest.raises(BoardUnreachable):
            deploy(new, passing, root, tmp_path / "w")
        board.close()
    # It ended where it was cut, but for what cleans up.
    passed = [each for each in cut.states if each]
    assert list(dict.fromkeys(passed)) == list(STATES)[: list(STATES).index(state) + 1]
    switched = list(STATES).index(state) > list(STATES).index("switching")
    assert link_of(root) == (new.digest if switched else old.digest)
    assert_whole(root, link_of(root))
    good = open_ssh("board", ssh_config=sshd.write_config(tmp_path / "good"))
    deploy(new, good, root, tmp_path / "w")
    good.close()
    assert link_of(root) == new.digest
    assert_whole(root, new.digest)
    assert leftovers(root) == []
