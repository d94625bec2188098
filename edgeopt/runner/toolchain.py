"""The compilers and sources that the device program is built from, all of them from wheels."""

import hashlib
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edgeopt.errors import ConfigError

#: Instruction set, as ELF headers and `uname -m` call it.
Machine = Literal["aarch64", "arm", "x86_64"]
#: dynamic: opens model.so. static: musl, the model linked in, runs on any Linux.
Linkage = Literal["dynamic", "static"]

#: The runtime is built from these wheels' own sources, so it is tied to them: other releases
#: have other files and another bytecode. Newer tvm-ffi releases crash inside MetaSchedule.
PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post0"}

#: Zig's targets. glibc 2.17 (2012) is the oldest that has an aarch64 port and clock_gettime
#: in libc itself.
TRIPLES: dict[tuple[Machine, Linkage], str] = {
    ("aarch64", "dynamic"): "aarch64-linux-gnu.2.17",
    ("aarch64", "static"): "aarch64-linux-musl",
    ("arm", "dynamic"): "arm-linux-gnueabihf.2.17",
    ("arm", "static"): "arm-linux-musleabihf",
    ("x86_64", "dynamic"): "x86_64-linux-gnu.2.17",
    ("x86_64", "static"): "x86_64-linux-musl",
}

#: Zig's "arm" is ARMv7-A without NEON; every board at hand has at least a Cortex-A7.
CPU_FLAGS: dict[Machine, tuple[str, ...]] = {
    "aarch64": (),
    "arm": ("-mcpu=cortex_a7",),
    "x86_64": (),
}

#: A compiler that runs longer than this hangs, in seconds; a cold build takes 1 to 3 minutes.
_TIMEOUT = 900.0


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Where the compiler and the sources are, and which versions they have."""

    zig: Path
    tvm: Path
    ffi: Path
    #: "name version" of each wheel; part of every cache key.
    versions: tuple[str, ...]


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError as error:
        raise ConfigError(
            f"{name} is not installed",
            why="the device program is built with it",
            fix=f"pip install {name}" + (f"=={PINS[name]}" if name in PINS else ""),
        ) from error


def _folder(module: str) -> Path:
    """Locate a package without importing it: importing tvm takes a second."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"the package {module} is incomplete",
            why="it is listed as installed, but cannot be found",
            fix="reinstall edgeopt's dependencies",
        )
    return Path(spec.origin).parent


def find_toolchain() -> Toolchain:
    """Locate the wheels; raises ConfigError when one is absent or not the pinned release."""
    found = {name: _installed(name) for name in (*PINS, "ziglang")}
    for name, pin in PINS.items():
        if found[name] != pin:
            raise ConfigError(
                f"{name} {found[name]} is installed, but the device program needs {pin}",
                why="the program is built from that wheel's own sources",
                fix=f"pip install {name}=={pin}",
            )
    return Toolchain(
        zig=_folder("ziglang") / "zig",
        tvm=_folder("tvm"),
        ffi=_folder("tvm_ffi"),
        versions=tuple(f"{name} {release}" for name, release in sorted(found.items())),
    )


def run_zig(tools: Toolchain, arguments: Sequence[str], *, cache: Path, folder: Path) -> None:
    """Run zig in folder; its own caches go under cache. Raises ConfigError with its stderr.

    The environment is empty but for these, so that CPATH and its like cannot change a build.
    """
    environment = {
        "PATH": os.defpath,
        "ZIG_LOCAL_CACHE_DIR": str(cache / "zig" / "local"),
        "ZIG_GLOBAL_CACHE_DIR": str(cache / "zig" / "global"),
    }
    command = [str(tools.zig), *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except OSError as error:
        raise ConfigError(f"cannot run {tools.zig}", why=str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"the compiler did not end within {_TIMEOUT:.0f} s") from error
    if done.returncode != 0:
        raise ConfigError(
            f"the compiler failed with status {done.returncode}",
            why=done.stderr.decode(errors="replace").strip()[-4000:],
            fix=f"if the disk was full, make room; if that is not it: rm -r {cache / 'zig'}",
        )


def digest_of(texts: Iterable[str], files: Iterable[Path]) -> str:
    """Hash options and file contents; a file counts by its name and its bytes."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)} {text}\n".encode())
    for path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()
