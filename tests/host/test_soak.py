"""Thirty seconds of the random-kill soak, and proof that it sees what it looks for."""

import os
import platform
import time
from collections.abc import Iterator

import pytest

from tests.conftest import SSHD
from tests.soak import APP, Soak, SoakFailed, open_soak, processes_of

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
    pytest.mark.skipif(SSHD is None, reason="no sshd; run: sudo apt-get install -y openssh-server"),
]


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    with open_soak(tmp_path_factory.mktemp("soak"), seed=1) as found:
        yield found


def test_half_a_minute_of_random_kills_leaves_whole_releases_and_every_rerun_converges(
    soak: Soak,
) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        soak.strike()
    figures = soak.figures
    assert figures.kills > 0
    assert figures.converged == figures.reruns > 0
    assert figures.old + figures.new == figures.faults.total()


def test_a_half_release_a_leftover_and_an_orphan_would_be_seen(soak: Soak) -> None:
    number = soak.current
    soak.current = soak.previous
    weights = soak.root / "apps" / APP / "current" / "weights.bin"
    content, mode = weights.read_bytes(), weights.stat().st_mode
    soak.check_converged(number)
    weights.chmod(0o600)
    weights.write_bytes(content[:-1])
    with pytest.raises(SoakFailed, match=r"weights\.bin of .* is not whole"):
        soak.check_converged(number)
    weights.write_bytes(content)
    weights.chmod(mode)
    (soak.root / "lease").touch()
    with pytest.raises(SoakFailed, match=r"left: \['\.edgeopt/lease'\]"):
        soak.check_converged(number)
    (soak.root / "lease").unlink()
    child = os.fork()
    if child == 0:
        os.chdir(soak.home)
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.2)
        assert len(processes_of(soak.home)) == 1
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    soak.current = number
