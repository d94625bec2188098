"""Where files live here; the only reader of EDGEOPT_CACHE_DIR and EDGEOPT_DATA_DIR."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeopt.errors import ConfigError


def cache_folder() -> Path:
    """Return the folder of stages, toolchains and images: EDGEOPT_CACHE_DIR, or the user's."""
    named = os.environ.get("EDGEOPT_CACHE_DIR")
    if named:
        folder = Path(named).expanduser().absolute()
    else:
        from platformdirs import user_cache_path

        folder = user_cache_path("edgeopt")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be the cache",
            why=error.strerror or str(error),
            fix="let EDGEOPT_CACHE_DIR name a folder that you may write to",
        ) from error
    return folder


def tile_file(cpu: str) -> Path:
    """Return what holds a CPU's measured tiles: below EDGEOPT_DATA_DIR, or the user's data."""
    return _data_folder() / "tiles" / f"{cpu}.json"


def times_file(target: str, kind: str) -> Path:
    """Return what holds the times of kernels measured on such boards, in the same place."""
    return _data_folder() / "times" / f"{target}.{kind}.json"


def _data_folder() -> Path:
    """Return EDGEOPT_DATA_DIR, or the folder of the user's data."""
    named = os.environ.get("EDGEOPT_DATA_DIR")
    if named:
        return Path(named).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("edgeopt")


def report_folder(project: Path) -> Path:
    """Return where a project's last report on each target lies."""
    return project / ".edgeopt" / "reports"


def check_output(path: Path | None) -> None:
    """Refuse a file that cannot be written, before anything slow starts."""
    if path is not None and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise ConfigError(
            f"{path} cannot be written",
            why="it is a folder" if path.is_dir() else "its folder is missing or not yours",
            fix="name a file in a folder that you may write to",
        )


def check_new(folder: Path) -> None:
    """Refuse a folder that exists, before anything slow starts."""
    if folder.exists():
        raise ConfigError(f"{folder} exists", fix="name a folder that does not exist yet")


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder for what is written within: all of it, or nothing."""
    # Outside: a folder that somebody else made meanwhile is not ours to remove.
    folder.mkdir(parents=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_output(path: Path, text: str) -> None:
    """Write a file that the user named."""
    check_output(path)
    path.write_text(text, encoding="utf-8")
