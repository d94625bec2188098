"""onnxruntime's own aarch64 wheel on a board, called through its C API: no Python there."""

import secrets
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

import numpy as np
import onnx
from filelock import FileLock

from edgeopt.artifact import Model
from edgeopt.board import Board
from edgeopt.board.emulator import default_cache
from edgeopt.board.script import QUICK, SLOWEST_LINK, printable, run_script
from edgeopt.errors import DeployFailed
from tests.bench.prepare import draw_samples

VERSION = metadata.version("onnxruntime")
#: Of the wheel: what it is built for.
_PLATFORM = "manylinux_2_28_aarch64"
_GLIBC = "2.28"
#: Seconds for one inference under emulation.
_PER_INFERENCE = 60.0

_OPEN = r"""
mkdir -p .edgeopt/peer
cd .edgeopt/peer
pwd
for each in *; do if [ -f "$each" ]; then echo "has $each"; fi; done
"""
_MAKE = 'mkdir -p "$1"\n'
_PLACE = 'chmod 700 "$1.part" && mv "$1.part" "$1"\n'
_REMOVE = 'case $1 in */run-*) rm -rf "$1";; esac\n'


@dataclass(frozen=True, slots=True)
class PeerRun:
    """What onnxruntime did with one model on one board."""

    samples_ns: tuple[int, ...]
    #: VmHWM in bytes.
    peak: int


def measure_peer(board: Board, path: Path, model: Model, *, warmup: int, rounds: int) -> PeerRun:
    """Run an ONNX file on the board, one thread, every optimization.

    The library stays there for the next call; the model and its inputs do not.
    """
    lines = run_script(board, _OPEN, (), doing="look for onnxruntime")
    home = PurePosixPath(lines[0])
    present = {line.removeprefix("has ") for line in lines[1:]}
    for file in (_library(), _program()):
        if file.name not in present:
            _send(board, file, home / f"{file.name}.part")
            run_script(board, _PLACE, (str(home / file.name),), doing="place onnxruntime")
    folder = home / f"run-{secrets.token_hex(6)}"
    run_script(board, _MAKE, (str(folder),), doing="make a folder")
    try:
        _send(board, path, folder / "model.onnx")
        inputs = _send_inputs(board, path, model, folder)
        outputs = ",".join(each.name for each in onnx.load(path).graph.output)
        argv = [str(home / _program().name), str(home / _library().name)]
        unit = "instructions" if board.kind == "emulated" else "ns"
        argv += [str(folder / "model.onnx"), unit, str(warmup), str(rounds), outputs, *inputs]
        done = board.run(argv, timeout=QUICK + _PER_INFERENCE * (warmup + rounds))
    finally:
        run_script(board, _REMOVE, (str(folder),), doing="remove the peer's files")
    if done.status != 0:
        raise DeployFailed(
            "onnxruntime failed on the board",
            why=f"status {done.status}: {printable(done.stderr)[:300]}",
        )
    return parse_run(done.stdout.decode())


def parse_run(text: str) -> PeerRun:
    """Read what the program prints.

    >>> parse_run("ns 12\\nns 13\\nkb   2048 kB\\n")
    PeerRun(samples_ns=(12, 13), peak=2097152)
    """
    words = [line.split() for line in text.splitlines()]
    samples = tuple(int(each[1]) for each in words if each[0] == "ns")
    (peak,) = (int(each[1]) * 1024 for each in words if each[0] == "kb")
    return PeerRun(samples, peak)


def _send(board: Board, local: Path, remote: PurePosixPath) -> None:
    board.put(local, remote, timeout=QUICK + local.stat().st_size / SLOWEST_LINK)


def _send_inputs(board: Board, path: Path, model: Model, folder: PurePosixPath) -> list[str]:
    """Send each input's bytes; return the program's arguments for them."""
    feeds, arguments = draw_samples(model, 1), []
    wanted = {each.name for each in onnx.load(path).graph.input}
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as work:
        for index, spec in enumerate(each for each in model.inputs if each.name in wanted):
            values = np.ascontiguousarray(feeds[spec.name][0])
            local = Path(work) / str(index)
            local.write_bytes(values.tobytes())
            _send(board, local, folder / local.name)
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            shape = "x".join(map(str, values.shape))
            arguments.append(f"{spec.name}={kind}:{folder / local.name}:{shape}")
    return arguments


def _folder() -> Path:
    folder = default_cache() / "bench" / "peer"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _library() -> Path:
    """Return the library out of the wheel for the boards, which pip downloads once."""
    path = _folder() / f"libonnxruntime-{VERSION}.so"
    with FileLock(_folder() / ".lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=_folder()) as work:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
                command += ["--only-binary=:all:", f"--platform={_PLATFORM}", "--dest", work]
                subprocess.run([*command, f"onnxruntime=={VERSION}"], check=True)
                (wheel,) = Path(work).glob("*.whl")
                draft = Path(work) / "library"
                with zipfile.ZipFile(wheel) as archive:
                    name = f"onnxruntime/capi/libonnxruntime.so.{VERSION}"
                    draft.write_bytes(archive.read(name))
                draft.replace(path)
    return path


def _program() -> Path:
    """Return the program, compiled by zig once."""
    source = Path(__file__).with_name("peer.c")
    path = _folder() / f"peer-{_digest(source)}"
    with FileLock(_folder() / ".lock"):
        if not path.exists():
            draft = path.with_suffix(".draft")
            command = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-O2", "-D_GNU_SOURCE"]
            command += ["-target", f"aarch64-linux-gnu.{_GLIBC}", str(source), "-ldl"]
            subprocess.run([*command, "-o", str(draft)], check=True)
            draft.replace(path)
    return path


def _digest(path: Path) -> str:
    from edgeopt.store import digest_file

    return digest_file(path)[:12]
