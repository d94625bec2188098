"""Folders for a moment: whoever is killed leaves one behind, and whoever comes next removes it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

#: Its lock is held for as long as the folder is in use; the system frees it when its user dies.
_LOCK = ".in-use"


@contextmanager
def scratch(parent: Path | None = None, prefix: str = "edgeopt-") -> Iterator[Path]:
    """Make an empty folder for this account alone, below parent or the system's, and remove it.

    The first of a process also removes those with this prefix that nobody uses any more.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _sweep(parent, prefix)
    lock = -1
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as name:
            lock = _hold(Path(name))
            folder = Path(name) / "files"
            folder.mkdir()
            yield folder
    finally:
        if lock >= 0:
            os.close(lock)


def _hold(folder: Path) -> int:
    """Lock a folder of ours; whoever sees the lock's file sees it locked."""
    draft = folder / f"{_LOCK}.new"
    lock = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    draft.rename(folder / _LOCK)
    return lock


@cache
def _sweep(parent: Path, prefix: str) -> None:
    """Remove what killed processes of this account left; a folder without a lock's file stays."""
    for each in parent.glob(f"{prefix}*"):
        # Another process may remove it at the same time.
        with suppress(OSError):
            if each.is_symlink() or each.stat().st_uid != os.getuid():
                continue
            lock = os.open(each / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(each)
            finally:
                os.close(lock)
