"""A cold upload beside scp's, to the same OpenSSH server on this machine, taking turns.

python -m tests.bench.upload --megabytes 64 --rounds 5
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path, PurePosixPath

import numpy as np

from edgeopt.board.ssh import SshBoard, open_ssh
from tests.conftest import start_server


def time_put(board: SshBoard, source: Path, target: Path) -> float:
    """Return the seconds that a put takes, its fsync included."""
    target.unlink(missing_ok=True)
    begun = time.monotonic()
    board.put(source, PurePosixPath(target), timeout=600)
    return time.monotonic() - begun


def time_scp(config: Path, source: Path, target: Path) -> float:
    """Return the seconds that scp takes with its own choices; unlike put it does not fsync."""
    target.unlink(missing_ok=True)
    begun = time.monotonic()
    subprocess.run(["scp", "-q", "-F", str(config), str(source), f"board:{target}"], check=True)
    return time.monotonic() - begun


def main() -> None:
    """Print the shortest time of each, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as name:
        folder = Path(name)
        (folder / "sshd").mkdir()
        server, process = start_server(folder / "sshd")
        try:
            source = folder / "sent"
            source.write_bytes(np.random.default_rng(0).bytes(asked.megabytes * 10**6))
            config = server.write_config(folder / "config")
            ours, theirs = [], []
            for _ in range(asked.rounds):
                # A connection is part of what scp does: it is part of ours too.
                begun = time.monotonic()
                board = open_ssh("board", ssh_config=config)
                opened = time.monotonic() - begun
                ours.append(opened + time_put(board, source, folder / "ours"))
                board.close()
                theirs.append(time_scp(config, source, folder / "theirs"))
        finally:
            process.terminate()
            process.wait(10)
    one, other = min(ours), min(theirs)
    print(
        f"{asked.megabytes} MB: put {one:.2f} s ({asked.megabytes / one:.0f} MB/s), "
        f"scp {other:.2f} s ({asked.megabytes / other:.0f} MB/s), ratio {one / other:.2f}"
    )


if __name__ == "__main__":
    main()
