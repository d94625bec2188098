"""Thirty seconds of the random-kill soak, and proof that it sees what it looks for."""

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SSHD, Sshd
from tests.soak import PHASES, PROVED, Soak, SoakFailed

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
    pytest.mark.skipif(SSHD is None, reason="no sshd; run: sudo apt-get install -y openssh-server"),
]


@pytest.fixture(scope="module")
def printed() -> str:
    # In a process of its own: it forks, and other tests leave connections with threads open.
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", "--seconds", "30", "--seed", "1", "--prove"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_half_a_minute_of_random_kills_leaves_whole_releases_and_every_rerun_converges(
    printed: str,
) -> None:
    faults, kills, reruns, converged, old, new = (
        int(re.search(pattern, printed).group(1))  # type: ignore[union-attr]
        for pattern in (
            r"(\d+) faults",
            r"(\d+) kills",
            r"(\d+) reruns",
            r"(\d+) converged",
            r"old release (\d+)",
            r"new (\d+)",
        )
    )
    assert kills >= len(PHASES)
    # Also said by its exit code: see check_phases.
    assert all(re.search(rf"killed when: .*{each} [1-9]", printed) for each in PHASES)
    assert converged == reruns > 0
    assert old + new == faults


def test_a_phase_without_a_kill_fails_the_soak(tmp_path: Path) -> None:
    soak = Soak(tmp_path, tmp_path, Sshd(folder=tmp_path, port=1, pid=1), seed=3)
    soak.figures.killed.update(PHASES)
    soak.check_phases()
    soak.figures.killed["staged"] = 0
    with pytest.raises(SoakFailed, match=r"seed 3.* killed when it was staged"):
        soak.check_phases()


def test_a_half_release_a_leftover_and_an_orphan_would_be_seen(printed: str) -> None:
    assert PROVED in printed
