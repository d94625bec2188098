"""What every board promises, as tests: each kind of board runs them all on itself."""

import hashlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board import KEPT_OUTPUT, TIMED_OUT, Board
from edgeopt.errors import BoardIncompatible

#: Bytes of each of two streams: more than SSH's window of 2 MiB.
FLOOD = 10 << 20

HOSTILE = (
    "a b",
    "",
    "-rf",
    "it's",
    "'; touch injected; echo '",
    '"$(touch injected)"',
    "`touch injected`",
    "$HOME\\n\\\\",
    "two\nlines\n",
    "!x !! {a,b} ~ * ?",
    "ünï ☃",
    "%s\\0",
)


class BoardContract:
    """Subclasses give a fixture "board"."""

    @pytest.fixture
    def area(self, board: Board) -> Iterator[PurePosixPath]:
        done = board.run(["mktemp", "-d"], timeout=60)
        folder = done.stdout.decode().strip()
        assert folder.startswith("/")
        yield PurePosixPath(folder)
        board.run(["rm", "-rf", folder], timeout=60)

    def test_the_status_is_the_one_that_a_shell_would_see(self, board: Board) -> None:
        for script, status in (
            ("exit 0", 0),
            ("exit 7", 7),
            ("exit 255", 255),
            ("kill -KILL $$", 137),
            ("kill -SEGV $$", 139),
        ):
            assert board.run(["sh", "-c", script], timeout=60).status == status, script
        assert board.run(["/nonexistent/program"], timeout=60).status == 127
        assert board.run(["/etc/passwd"], timeout=60).status == 126

    def test_arguments_arrive_as_they_are(self, board: Board) -> None:
        done = board.run(["printf", "%s|", *HOSTILE], timeout=60)
        assert done.stdout.decode() == "".join(f"{word}|" for word in HOSTILE)
        assert done.argv == ("printf", "%s|", *HOSTILE)
        assert board.run(["test", "-e", "injected"], timeout=60).status == 1

    def test_stdin_arrives_whole_and_ends(self, board: Board) -> None:
        payload = random.Random(1).randbytes(FLOOD // 8)
        done = board.run(["sha256sum"], stdin=payload, timeout=120)
        assert done.stdout.split()[0].decode() == hashlib.sha256(payload).hexdigest()
        assert board.run(["cat"], timeout=60).stdout == b""
        assert board.run(["cat"], stdin=b"a\0b\n\n", timeout=60).stdout == b"a\0b\n\n"

    def test_a_command_need_not_read_its_stdin(self, board: Board) -> None:
        assert board.run(["true"], stdin=bytes(FLOOD // 4), timeout=120).status == 0

    def test_output_and_errors_stay_apart(self, board: Board) -> None:
        done = board.run(["sh", "-c", "echo out; echo err >&2; printf end"], timeout=60)
        assert (done.stdout, done.stderr) == (b"out\nend", b"err\n")
        assert not done.truncated

    def test_two_large_streams_at_once_do_not_block_each_other(self, board: Board) -> None:
        script = 'head -c "$1" /dev/zero >&2; head -c "$1" /dev/zero'
        done = board.run(["sh", "-c", script, "sh", str(FLOOD)], timeout=300)
        assert (len(done.stdout), len(done.stderr)) == (FLOOD, FLOOD)
        assert done.status == 0
        assert not done.truncated

    def test_output_beyond_the_cap_is_dropped_and_said(self, board: Board) -> None:
        size = KEPT_OUTPUT + 3_000_000
        done = board.run(["head", "-c", str(size), "/dev/zero"], timeout=300)
        assert len(done.stdout) == KEPT_OUTPUT
        assert done.truncated
        assert done.status == 0

    def test_the_deadline_kills_the_whole_process_group(self, board: Board) -> None:
        begun = time.monotonic()
        script = "sleep 987 & echo $! $$; wait"
        done = board.run(["sh", "-c", script], timeout=2)
        assert done.status == TIMED_OUT
        assert time.monotonic() - begun < 30
        numbers = done.stdout.decode().split()
        assert len(numbers) == 2
        for number in numbers:
            assert not is_alive(board, number)

    def test_what_a_command_leaves_behind_is_killed_with_its_end(self, board: Board) -> None:
        script = "sleep 986 >/dev/null 2>&1 & echo $!"
        done = board.run(["sh", "-c", script], timeout=60)
        assert done.status == 0
        assert not is_alive(board, done.stdout.decode().strip())

    def test_a_file_goes_there_and_back(
        self, board: Board, area: PurePosixPath, tmp_path: Path
    ) -> None:
        content = random.Random(2).randbytes(FLOOD // 4 + 7)
        (tmp_path / "sent").write_bytes(content)
        board.put(tmp_path / "sent", area / "file", timeout=120)
        done = board.run(["sha256sum", str(area / "file")], timeout=60)
        assert done.stdout.split()[0].decode() == hashlib.sha256(content).hexdigest()
        mode = board.run(["stat", "-c", "%a", str(area / "file")], timeout=60)
        assert mode.stdout == b"600\n"
        board.get(area / "file", tmp_path / "back", limit=len(content), timeout=120)
        assert (tmp_path / "back").read_bytes() == content

    @pytest.mark.parametrize("offset", [1, 32768, 70_001, 100_000])
    def test_putting_goes_on_at_an_offset_and_cuts_what_was_beyond(
        self, board: Board, area: PurePosixPath, tmp_path: Path, offset: int
    ) -> None:
        content = random.Random(offset).randbytes(100_000)
        (tmp_path / "begun").write_bytes(content[:offset] + b"garbage" * 20_000)
        board.put(tmp_path / "begun", area / "file", timeout=60)
        (tmp_path / "sent").write_bytes(content)
        board.put(tmp_path / "sent", area / "file", offset=offset, timeout=60)
        board.get(area / "file", tmp_path / "back", limit=1 << 20, timeout=60)
        assert (tmp_path / "back").read_bytes() == content

    def test_names_of_files_are_not_read_as_anything_else(
        self, board: Board, area: PurePosixPath, tmp_path: Path
    ) -> None:
        for number, name in enumerate(filter(None, HOSTILE)):
            name = name.replace("/", "_")
            (tmp_path / "sent").write_text(str(number))
            board.put(tmp_path / "sent", area / name, timeout=60)
            board.get(area / name, tmp_path / "back", limit=10, timeout=60)
            assert (tmp_path / "back").read_text() == str(number)
        listed = board.run(["find", str(area), "-name", "injected"], timeout=60)
        assert listed.stdout == b""

    def test_relative_paths_start_at_home_for_files_and_commands(
        self, board: Board, area: PurePosixPath, tmp_path: Path
    ) -> None:
        name = f"edgeopt-test-{area.name}"
        (tmp_path / "sent").write_text("x")
        board.put(tmp_path / "sent", PurePosixPath(name), timeout=60)
        try:
            assert board.run(["cat", name], timeout=60).stdout == b"x"
            board.get(PurePosixPath(name), tmp_path / "back", limit=1, timeout=60)
        finally:
            board.run(["rm", "-f", name], timeout=60)

    def test_only_a_regular_file_within_the_limit_is_read(
        self, board: Board, area: PurePosixPath, tmp_path: Path
    ) -> None:
        (tmp_path / "sent").write_bytes(bytes(1000))
        board.put(tmp_path / "sent", area / "file", timeout=60)
        board.run(["ln", "-s", "file", str(area / "link")], timeout=60)
        board.run(["mkfifo", str(area / "pipe")], timeout=60)
        for name, limit in (("file", 999), ("link", 9999), ("pipe", 9999), ("absent", 9)):
            with pytest.raises(BoardIncompatible):
                board.get(area / name, tmp_path / "back", limit=limit, timeout=60)
        with pytest.raises(BoardIncompatible):
            board.get(area, tmp_path / "back", limit=9999, timeout=60)
        assert [each.name for each in tmp_path.iterdir()] == ["sent"]

    def test_a_refused_upload_says_why(
        self, board: Board, area: PurePosixPath, tmp_path: Path
    ) -> None:
        (tmp_path / "sent").write_bytes(bytes(200_000))
        with pytest.raises(BoardIncompatible, match=r"why: .*[Nn]o such file"):
            board.put(tmp_path / "sent", area / "absent" / "file", timeout=60)
        # Every write to this device finds the disk full.
        with pytest.raises(BoardIncompatible, match=r"full|space|write"):
            board.put(tmp_path / "sent", PurePosixPath("/dev/full"), timeout=60)

    def test_threads_may_share_a_board(self, board: Board) -> None:
        found: dict[int, bytes] = {}

        def ask(number: int) -> None:
            found[number] = board.run(["echo", str(number)], timeout=120).stdout

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert found == {number: f"{number}\n".encode() for number in range(4)}


def is_alive(board: Board, number: str) -> bool:
    """Look for a process that still runs, granting a second for its end; a zombie is dead."""
    for _ in range(10):
        done = board.run(["cat", f"/proc/{number}/stat"], timeout=60)
        if done.status != 0 or done.stdout.rpartition(b")")[2].split()[0] in (b"Z", b"X"):
            return False
        time.sleep(0.1)
    return True
