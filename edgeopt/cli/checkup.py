"""What edgeopt needs of this machine, looked up without importing any of it."""

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata


@dataclass(frozen=True, slots=True)
class Finding:
    """One part: whether it is here, what was found, and how to get it."""

    part: str
    ok: bool
    found: str
    fix: str
    required: bool = True


def examine() -> list[Finding]:
    """Look at the compiler, the cross linker, the exporter and the emulator."""
    return [
        _exact("compiler", "apache-tvm", "0.27.0.post1"),
        _exact("compiler's interface", "apache-tvm-ffi", "0.1.14.post0"),
        _package("oracle", "onnxruntime", "pip install --upgrade edgeopt"),
        _package("cross compiler", "ziglang", "pip install --upgrade edgeopt"),
        _package("export of torch modules", "torch", "pip install 'edgeopt[train]'", False),
        _package("export of torch modules", "onnxscript", "pip install 'edgeopt[train]'", False),
        _programs(
            "emulated board",
            ("qemu-system-aarch64", "mke2fs", "dpkg-deb", "apt-get"),
            "sudo apt-get install qemu-system-arm e2fsprogs",
        ),
        _programs("shell on an emulated board", ("ssh",), "sudo apt-get install openssh-client"),
    ]


def _exact(part: str, name: str, version: str) -> Finding:
    fix = f"pip install '{name}=={version}'"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(part, False, f"no package {name}", fix)
    return Finding(part, found == version, f"{name} {found}", fix)


def _package(part: str, name: str, fix: str, required: bool = True) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(part, False, f"no package {name}", fix, required)
    return Finding(part, True, f"{name} {metadata.version(name)}", fix, required)


def _programs(part: str, names: Sequence[str], fix: str) -> Finding:
    missing = [name for name in names if shutil.which(name) is None]
    found = f"missing {', '.join(missing)}" if missing else ", ".join(names)
    return Finding(part, not missing, found, fix, required=False)
