"""Many who deploy to one board at the same time: one after the other, and nobody is lost."""

import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.boards_kit import Boards, Home, Host, boards
from tests.tiny import write_tiny

__all__ = ["boards"]

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]

#: How many deploy at once; `make soak-boards` has 20.
COUNT = int(os.environ.get("EDGEOPT_DEPLOYS", "4"))
_MARK = b"EDGEOPT_LEASE="


def token_of(process: Path, home: bytes) -> bytes:
    """Return the lease that a process runs under on the board with this home, or nothing."""
    try:
        words = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return b""
    if b"HOME=" + home not in words:
        return b""
    return next((each.removeprefix(_MARK) for each in words if each.startswith(_MARK)), b"")


def tokens_now(home: bytes) -> set[bytes]:
    """Return the leases under which commands run at one and the same moment."""
    seen: dict[bytes, list[Path]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if token := token_of(entry, home):
            seen.setdefault(token, []).append(entry)
    if len(seen) < 2:
        return set(seen)
    # Looking takes a while: count those that are still there now that all were seen.
    return {
        token
        for token, processes in seen.items()
        if any(token_of(each, home) == token for each in processes)
    }


class Watch:
    """Looks all the time at what runs on a board."""

    def __init__(self, board: Home) -> None:
        self._home = os.fsencode(board.folder)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.looks = 0
        self.seen: set[bytes] = set()
        self.together: list[set[bytes]] = []

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            found = tokens_now(self._home)
            self.looks += 1
            self.seen |= found
            if len(found) > 1:
                self.together.append(found)


@pytest.fixture
def hosts(tmp_path: Path, boards: Boards) -> Iterator[list[Host]]:
    """Return one host per application; all of them have the same model, compiled once."""
    first = write_tiny(tmp_path / "project")
    made = []
    for number in range(COUNT):
        folder = tmp_path / f"project{number}"
        shutil.copytree(first, folder)
        file = folder / "edgeopt.toml"
        file.write_text(file.read_text().replace('app = "tiny"', f'app = "tiny{number}"'))
        made.append(Host(folder, boards.ssh_config))
    yield made
    for each in made:
        each.leaves()


def test_many_deploys_at_once_take_turns_and_all_of_them_are_kept(
    hosts: list[Host], boards: Boards, capsys: pytest.CaptureFixture[str]
) -> None:
    board, elsewhere = boards.add(2)
    argv = ("deploy", "--target", "x86-64", "--no-reference", "--json", "--board")
    # What is compiled is compiled once, on another board.
    assert hosts[0].types(*argv, elsewhere.name).returncode == 0
    begun = time.monotonic()
    with Watch(board) as watch:
        running = [each.begins(*argv, board.name, "--wait", "10min") for each in hosts]
        ended = [each.communicate(timeout=500) for each in running]
    seconds = time.monotonic() - begun
    codes = [each.returncode for each in running]
    assert codes == [0] * COUNT, [said for _, said in ended]
    reports = [json.loads(said) for said, _ in ended]
    assert sorted(each["fence"] for each in reports) == list(range(1, COUNT + 1))
    assert watch.together == []
    # It has seen most of them, so that it would have seen two at once.
    assert len(watch.seen) > COUNT / 2
    for number, report in enumerate(reports):
        assert report["kept"] is True
        assert board.current(f"tiny{number}") == report["digest"]
    assert not (board.folder / ".edgeopt" / "lease").exists()
    waited = sum("waiting for edgeopt deploy tiny" in said for _, said in ended)
    with capsys.disabled():
        print(
            f"\n{COUNT} deploys at once: {seconds:.0f} s, {waited} waited, {watch.looks} looks, "
            f"{len(watch.seen)} leases seen at work, never two"
        )
