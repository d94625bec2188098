"""The cache of stages: a result is found again under the digest of all it was made from."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

import edgeopt

#: Packages whose version may change a stage's result.
_TOOLS = (
    "apache-tvm",
    "apache-tvm-ffi",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxslim",
    "tokenizers",
    "torch",
    "ziglang",
)

#: How long a result that was replaced may still be read by a run that found it.
_KEPT_SECONDS = 24 * 3600.0
#: How long a result stays that no run asks for.
UNUSED_SECONDS = 30 * 24 * 3600.0

#: Below the cache folder: the kernels that the compile stage keeps for itself.
KERNELS = "kernels"

Result = TypeVar("Result", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Staged(Generic[Result]):
    """A stage's result, and whether it was found or made."""

    value: Result
    cached: bool
    seconds: float


def digest_file(path: Path) -> str:
    """Return the sha256 of a file as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_tree(root: Path, *, skip: frozenset[str] = frozenset()) -> str:
    """Return one sha256 for the names and contents of a folder's regular files.

    Hidden entries, byte-code caches and the names in skip do not count.
    """
    total = hashlib.sha256()
    for path in sorted(_files(root, skip)):
        total.update(f"{path.relative_to(root).as_posix()}\0{digest_file(path)}\n".encode())
    return total.hexdigest()


def _files(root: Path, skip: frozenset[str]) -> Iterator[Path]:
    for entry in root.iterdir():
        if entry.name.startswith(".") or entry.name == "__pycache__" or entry.name in skip:
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry, skip)
        elif entry.is_file():
            yield entry


def canonical(value: object) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@cache
def tool_versions() -> dict[str, str]:
    """Return what every key includes: edgeopt's own source and the versions of its tools."""
    versions = {"edgeopt": digest_tree(Path(edgeopt.__file__).parent)}
    for tool in _TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            versions[tool] = ""
    return versions


@dataclass(frozen=True, slots=True)
class Store:
    """Results on disk, one folder per stage and key. Safe to share between processes."""

    root: Path

    def stage(
        self,
        name: str,
        inputs: object,
        result: type[Result],
        run: Callable[[Path], Result],
        *,
        fresh: bool = False,
        tools: Mapping[str, str] | None = None,
    ) -> Staged[Result]:
        """Return the stored result, or make it in an empty folder and store it.

        A change of tools makes it anew: by default all of them, and edgeopt's own source.

        A run that ends without a result leaves a folder without a record, which the next run
        removes. A record whose files were changed or lost since is not believed either. What
        fresh replaces stays for a day: another process may be reading it.
        """
        started = time.monotonic()
        made_with = tool_versions() if tools is None else dict(tools)
        key = hashlib.sha256(canonical([name, inputs, made_with]).encode()).hexdigest()
        folder = self.root / "stages" / name / key[:32]
        with _locked(folder.with_suffix(".lock")):
            made = _made(folder)
            found = _read_record(made[-1], result) if made and not fresh else None
            if found is not None:
                os.utime(made[-1])
                return Staged(found, True, time.monotonic() - started)
            _remove_old(folder, made)
            place = folder / f"{time.time_ns():x}"
            place.mkdir(parents=True)
            value = run(place)
            _write_record(place, value)
        return Staged(value, False, time.monotonic() - started)

    def every(
        self, name: str, result: type[Result], *, where: Callable[[Result], bool] = lambda _: True
    ) -> Iterator[Result]:
        """Yield the newest result of each key of a stage whose files are what they were.

        What a run has asked for last comes last. Only files of those that are wanted are hashed.
        """
        folders = (self.root / "stages" / name).glob("*/")
        newest = [made[-1] for folder in folders if (made := _made(folder))]
        for place in sorted(newest, key=_asked):
            found = _read_record(place, result, where)
            if found is not None:
                yield found

    def expire(self, seconds: float = UNUSED_SECONDS) -> None:
        """Remove the results that no run has asked for since; what a run makes now stays."""
        for folder in (self.root / "stages").glob("*/*/"):
            made = _made(folder)
            if not made or made[-1].stat().st_mtime >= time.time() - seconds:
                continue
            with _locked(folder.with_suffix(".lock"), wait=False) as ours:
                # Somebody may have found it meanwhile.
                if ours and made[-1].stat().st_mtime < time.time() - seconds:
                    shutil.rmtree(folder)

    def size(self) -> dict[str, int]:
        """Return the bytes held by each stage, and by the kernels that compiling shares."""
        stages = self.root / "stages"
        found = sorted(stages.iterdir()) if stages.is_dir() else []
        if (self.root / KERNELS).is_dir():
            found.append(self.root / KERNELS)
        return {stage.name: _bytes_below(stage) for stage in found}

    def clear(self) -> None:
        """Forget every result, and what compiling was helped by."""
        for name in ("stages", KERNELS):
            shutil.rmtree(self.root / name, ignore_errors=True)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder, frozenset()))


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock; yield False where somebody else has it and it is not waited for."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _made(folder: Path) -> list[Path]:
    """Return the complete results of one key, the newest last."""
    return sorted(path.parent for path in folder.glob("*/record.json"))


def _asked(place: Path) -> float:
    """Return when a run last asked for a result; 0 when it was removed meanwhile."""
    try:
        return place.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove_old(folder: Path, made: list[Path]) -> None:
    """Remove what a run left unfinished, and what was replaced long enough ago."""
    for path in folder.glob("*"):
        unfinished = path not in made
        if unfinished or path.stat().st_mtime < time.time() - _KEPT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _read_record(
    folder: Path, result: type[Result], where: Callable[[Result], bool] = lambda _: True
) -> Result | None:
    try:
        record = json.loads((folder / "record.json").read_bytes())
        files, found = record["files"], result.model_validate(record["result"])
        if not where(found):
            return None
        if any(digest_file(folder / name) != digest for name, digest in files.items()):
            return None
    except (OSError, ValueError, KeyError, TypeError, ValidationError):
        return None
    return found


def _write_record(folder: Path, value: BaseModel) -> None:
    files = {
        path.relative_to(folder).as_posix(): digest_file(path)
        for path in _files(folder, frozenset({"record.json"}))
    }
    text = canonical({"result": value.model_dump(mode="json"), "files": files})
    write_atomically(folder / "record.json", text.encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that a crash leaves the old or the new one, whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
