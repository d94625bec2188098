"""This machine as a board."""

import contextlib
import os
import secrets
import shutil
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, final

from edgeopt.board import KEPT_OUTPUT, TIMED_OUT, Completed, Kind
from edgeopt.errors import BoardIncompatible, BoardUnreachable


@final
class LocalBoard:
    """This machine; home (the user's own by default) is where relative paths start."""

    def __init__(self, *, home: Path | None = None) -> None:
        self._home = home or Path.home()

    @property
    def name(self) -> str:
        """Always "this machine"."""
        return "this machine"

    @property
    def kind(self) -> Kind:
        """Figures are wall-clock times of this machine."""
        return "native"

    def close(self) -> None:
        """There is nothing to let go of."""

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        """Run one program in a session of its own."""
        words = tuple(argv)
        try:
            child = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._home,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            return Completed(words, 127, b"", f"{words[0]}: {error.strerror}\n".encode())
        except OSError as error:
            return Completed(words, 126, b"", f"{words[0]}: {error.strerror}\n".encode())
        with child:
            return _finish(child, words, stdin, timeout)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        """Copy local[offset:]; the time limit is looked at between chunks."""
        deadline = time.monotonic() + timeout
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if offset else os.O_TRUNC)
        with _refusal(f"write {remote}"):
            descriptor = os.open(self._home / remote, flags, 0o600)
            with os.fdopen(descriptor, "wb") as target, local.open("rb") as source:
                target.truncate(offset)
                target.seek(offset)
                source.seek(offset)
                while data := source.read(1 << 20):
                    _in_time(deadline, remote)
                    target.write(data)
                target.flush()
                os.fsync(target.fileno())

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        """Copy a regular file of at most limit bytes."""
        deadline = time.monotonic() + timeout
        part = local.with_name(f".{local.name}.{secrets.token_hex(4)}.part")
        try:
            with _refusal(f"read {remote}"):
                # O_NONBLOCK: opening a named pipe must not wait for a writer.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(self._home / remote, flags)
                with os.fdopen(descriptor, "rb") as source, part.open("wb") as target:
                    found = os.fstat(source.fileno())
                    if not stat.S_ISREG(found.st_mode):
                        raise _refused(f"read {remote}", "it is not a regular file")
                    if found.st_size > limit:
                        why = f"it has {found.st_size} bytes, more than {limit}"
                        raise _refused(f"read {remote}", why)
                    _in_time(deadline, remote)
                    shutil.copyfileobj(source, target)
                part.replace(local)
        finally:
            part.unlink(missing_ok=True)


def _finish(
    child: "subprocess.Popen[bytes]", argv: tuple[str, ...], stdin: bytes, timeout: float
) -> Completed:
    """Feed and drain the child until it ends or its time does, then clear its process group."""
    kept = [bytearray(), bytearray()]
    dropped = [False, False]

    def drain(stream: IO[bytes], index: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(stream.fileno(), 1 << 16):
                room = KEPT_OUTPUT - len(kept[index])
                kept[index] += data[:room]
                dropped[index] |= len(data) > room

    def feed(stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            stream.write(stdin)
            stream.close()

    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    threads = [
        threading.Thread(target=drain, args=(child.stdout, 0), daemon=True),
        threading.Thread(target=drain, args=(child.stderr, 1), daemon=True),
        threading.Thread(target=feed, args=(child.stdin,), daemon=True),
    ]
    for each in threads:
        each.start()
    status: int
    try:
        code = child.wait(timeout)
        status = 128 - code if code < 0 else code
    except subprocess.TimeoutExpired:
        status = TIMED_OUT
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    for each in threads:
        # A process that left the group may keep a stream open: it is not waited for.
        each.join(2.0)
    return Completed(argv, status, bytes(kept[0]), bytes(kept[1]), any(dropped))


def _in_time(deadline: float, remote: PurePosixPath) -> None:
    if time.monotonic() > deadline:
        raise BoardUnreachable(
            f"this machine: {remote} was not moved in time",
            why="the deadline passed before the last byte",
            fix="give it a longer timeout",
        )


class _refusal:  # noqa: N801 - a context manager that reads as a word
    """Turn the system's refusal into the error that every board raises."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise _refused(self._what, error.strerror or str(error)) from error


def _refused(what: str, why: str) -> BoardIncompatible:
    return BoardIncompatible(
        f"this machine: cannot {what}",
        why=why,
        fix="check the path, its permissions and the free space",
    )
