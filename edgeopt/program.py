"""The device program: how it is called on a board, and what it answers."""

import contextlib
import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from edgeopt.artifact import Bundle, Fact, Release, TensorSpec
from edgeopt.board import Board
from edgeopt.board.canary import GROUP
from edgeopt.board.procfs import CORES
from edgeopt.board.script import QUICK, SLOWEST_LINK, printable, run_script, script_argv
from edgeopt.board.state import STATE, BoardState, read_state
from edgeopt.ending import raise_failure
from edgeopt.errors import ConfigError, DeployFailed, EdgeoptError
from edgeopt.surroundings import Conditions, Energy, Memory, Process

Array = NDArray[Any]

#: Seconds for one inference: 30 times MiniLM-L6 at 32 tokens on an emulated board.
_PER_INFERENCE = 60.0
#: Bytes; a million samples of ten digits fit.
_REPORT_LIMIT = 16_000_000
#: Header of an .npy file of any rank, in bytes (64-byte aligned by numpy).
_NPY_HEADER = 4096

_OPEN = 'mkdir -p "$1/out"\n' + STATE
_CLOSE = 'cd "$1/out" && sha256sum *.npy 2>/dev/null || true\nrm -rf "$1"\n' + STATE
# When memory runs out the kernel takes the program, not the board's sshd. Parameters: run folder,
# digests, bytes that the program may have (0: all there are), then its command.
_RUN = (
    GROUP
    + r"""
cd "$1"
printf '%s' "$2" | sha256sum -c > /dev/null 2>&1 || fail '{"error": "the inputs arrived damaged"}'
limit=$3
shift 3
ulimit -c 0
{ echo 1000 > /proc/self/oom_score_adj; } 2>/dev/null || true
if [ "$limit" = 0 ]; then exec "$@"; fi
find_group "" "edgeopt-run-$$" || fail "{\"error\": \"memory limits are $state\"}"
limit_group "$limit"
status=0
within "$@" || status=$?
# Another's SIGKILL says nothing of the limit.
if [ "$status" = 137 ] && ! [ "$(killed)" -gt 0 ]; then
    echo '{"error": "another program killed it (SIGKILL)"}' >&2
    status=1
fi
rmdir "$group" 2>/dev/null || true
exit "$status"
"""
)


class OutputFile(Fact):
    """One output as the program describes it."""

    path: str
    dtype: str
    shape: tuple[int, ...]


#: What the figures named ns are of: time, or instructions that the program executes itself.
Meter = Literal["CLOCK_MONOTONIC_RAW", "INSTRUCTIONS"]


class ProgramReport(Fact):
    """The JSON document of the device program; every field is checked, none is unknown."""

    schema_version: Literal[1]
    program: Literal["edgeopt-run"]
    version: str
    clock: Meter
    threads: int = Field(ge=1)
    #: Programs of earlier versions, which a board may go back to, tell less.
    start_ns: int = Field(default=0, ge=0)
    load_ns: int = Field(ge=0)
    first_ns: int = Field(ge=0)
    warm_ns: tuple[int, ...] = ()
    samples_ns: tuple[int, ...]
    realtime_drift_ns: int
    process: Process = Process()
    memory: Memory
    before: Conditions
    after: Conditions
    #: The board's power sensor, and what it showed where that was asked for.
    sensor: str | None = Field(default=None, pattern=r"^[ -~]{1,96}$")
    energy: Energy | None = None
    outputs: tuple[OutputFile, ...]


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """One run of the device program that ended well."""

    report: ProgramReport
    #: One array [S, *shape] for each output of the bundle.
    outputs: tuple[Array, ...]
    before: BoardState
    after: BoardState


@dataclass(frozen=True, slots=True)
class _Launch:
    """One release, what it is fed, and how often it computes."""

    release: Release
    bundle: Bundle
    inputs: list[Array]
    counts: Mapping[str, int]
    #: Bytes of memory that the kernel lets it have, by a control group; 0: all there are.
    limit: int = 0


def run_program(
    release: Release,
    bundle: Bundle,
    board: Board,
    *,
    feeds: Mapping[str, Array],
    warmup: int,
    iterations: int,
    threads: int,
    directory: Path,
) -> ProgramRun:
    """Run a release on S samples (feeds of shape [S, *shape]) and read its outputs back.

    Raise BoardIncompatible on SIGILL, BudgetExceeded when the kernel killed it for want of memory
    and DeployFailed on any other failure. Local files are written under directory; those on the
    board are removed.
    """
    inputs = _ordered_inputs(bundle, feeds)
    samples = len(inputs[0])
    if iterations < samples or warmup < 0 or threads < 1:
        raise ConfigError(
            "the run cannot give the outputs of every sample",
            why=f"{iterations} iterations, {samples} samples, {warmup} warm-ups, {threads} threads",
        )
    counts = {"warmup": warmup, "iterations": iterations, "threads": threads, "samples": samples}
    return _launch(board, _Launch(release, bundle, inputs, counts), directory)


def run_within(
    limit: int,
    release: Release,
    bundle: Bundle,
    board: Board,
    *,
    feeds: Mapping[str, Array],
    threads: int,
    directory: Path,
    energy_ms: int = 0,
) -> ProgramRun:
    """Run every sample once with so many bytes of memory, by a control group of its own (0: all).

    energy_ms: how long to rest before, and to run after that, under the board's power sensor.
    Raises what run_program raises: BudgetExceeded where the kernel killed it for the limit.
    """
    inputs = _ordered_inputs(bundle, feeds)
    samples = len(inputs[0])
    counts = {"warmup": 0, "iterations": samples, "threads": threads, "samples": samples}
    counts |= {"energy-ms": energy_ms} if energy_ms else {}
    return _launch(board, _Launch(release, bundle, inputs, counts, limit), directory)


def run_cold(
    others: int,
    release: Release,
    bundle: Bundle,
    board: Board,
    *,
    feeds: Mapping[str, Array],
    iterations: int,
    threads: int,
    directory: Path,
) -> ProgramRun:
    """Run a release on one sample, and before each timed inference read so many other bytes.

    So a kernel finds its weights where it does in a whole model with as many others. It needs that
    memory besides. Raises what run_program raises.
    """
    counts = {"warmup": 2, "iterations": iterations, "threads": threads, "samples": 1}
    counts["cold-bytes"] = others
    return _launch(
        board, _Launch(release, bundle, _ordered_inputs(bundle, feeds), counts), directory
    )


def _launch(board: Board, launch: _Launch, directory: Path) -> ProgramRun:
    release, bundle, counts = launch.release, launch.bundle, launch.counts
    folder = PurePosixPath(release.path).parents[3] / "runs" / f"run-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as stack:
        before = read_state(run_script(board, _OPEN, (str(folder),), doing="make a run folder"))
        stack.callback(_remove_quietly, board, folder)
        sums = _send_inputs(board, launch.inputs, folder, directory)
        argv = (str(folder), sums, str(launch.limit), *_command(release, bundle, counts))
        meter: Meter = "INSTRUCTIONS" if board.kind == "emulated" else "CLOCK_MONOTONIC_RAW"
        if meter == "INSTRUCTIONS":
            argv += ("--count-instructions",)
        timeout = QUICK + _PER_INFERENCE * (counts["warmup"] + counts["iterations"])
        done = board.run(script_argv(_RUN, argv), timeout=timeout)
        if done.status != 0:
            after = read_state(run_script(board, STATE, (), doing="read the board's state"))
            raise_failure(done, bundle, before, after)
        report = parse_report(done.stdout, counts, meter=meter)
        outputs, digests = _receive(board, bundle, report, folder, directory)
        closing = run_script(board, _CLOSE, (str(folder),), doing="remove the run folder")
        stack.pop_all()
    if not digests <= {line.partition(" ")[0] for line in closing}:
        raise DeployFailed("the outputs of the run arrived damaged from the board")
    return ProgramRun(report=report, outputs=outputs, before=before, after=read_state(closing))


def parse_report(
    text: bytes, counts: Mapping[str, int], *, meter: Meter = "CLOCK_MONOTONIC_RAW"
) -> ProgramReport:
    """Read the program's JSON strictly: sizes capped, no unknown field, no NaN, every sample."""
    if len(text) > _REPORT_LIMIT:
        raise DeployFailed(
            "the device program's report is too long to be one", why=f"{len(text)} bytes"
        )
    try:
        report = ProgramReport.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise DeployFailed(
            "the device program's report cannot be read",
            why=f"{place}: {first['msg']}; it starts with {printable(text[:80])!r}",
        ) from error
    if len(report.samples_ns) != counts["iterations"] or min(report.samples_ns) <= 0:
        raise DeployFailed(
            "the device program's report is not of this run",
            why=f"{len(report.samples_ns)} samples instead of {counts['iterations']}, "
            "or one that is not positive",
        )
    if report.clock != meter:
        raise DeployFailed(
            "the device program's report is not of this run",
            why=f"it measured {report.clock} instead of {meter}",
        )
    # A board may let the program have fewer cores than were asked for: the report says how many.
    if report.threads > counts["threads"]:
        raise DeployFailed(
            "the device program's report is not of this run",
            why=f"{report.threads} threads instead of {counts['threads']}",
        )
    temperatures = (report.before.temperature_c, report.after.temperature_c)
    if not all(math.isfinite(each) for each in temperatures if each is not None):
        raise DeployFailed(
            "the device program's report cannot be read", why="a temperature is not a number"
        )
    return report


def _ordered_inputs(bundle: Bundle, feeds: Mapping[str, Array]) -> list[Array]:
    """Return the arrays in the bundle's order, C-contiguous; refuse what it did not ask for."""
    names = [each.name for each in bundle.inputs]
    if sorted(feeds) != sorted(names):
        raise ConfigError(
            "the samples are not for this model",
            why=f"it has the inputs {', '.join(names)}, the samples have {', '.join(feeds)}",
        )
    arrays = []
    for each in bundle.inputs:
        array = np.ascontiguousarray(feeds[each.name])
        if array.shape[1:] != each.shape or array.dtype != np.dtype(each.dtype):
            raise ConfigError(
                f"the samples of input '{each.name}' are not for this model",
                why=f"{array.dtype} {array.shape}, not {each.dtype} [samples, *{each.shape}]",
            )
        arrays.append(array)
    if {array.shape[0] for array in arrays} != {arrays[0].shape[0]} or not arrays[0].shape[0]:
        raise ConfigError("the inputs have different numbers of samples, or none")
    return arrays


def _command(release: Release, bundle: Bundle, counts: Mapping[str, int]) -> list[str]:
    """Return the program's argument list; it runs in the run folder, where the inputs lie."""
    argv = [f"{release.path}/edgeopt-run"]
    # A static program has its model linked in.
    if any(each.name == "model.so" for each in bundle.files):
        argv += ["--model", f"{release.path}/model.so"]
    argv += ["--weights", f"{release.path}/weights.bin"]
    for index in range(len(bundle.inputs)):
        argv += ["--input", f"{index}.npy"]
    argv += ["--output", "out"]
    for name, count in counts.items():
        argv += [f"--{name}", str(count)]
    parts = [part for part, core in CORES.items() if core == bundle.core]
    if parts:
        argv += ["--core-part", str(int(parts[0], 16))]
    return argv


def _send_inputs(
    board: Board, inputs: Sequence[Array], folder: PurePosixPath, directory: Path
) -> str:
    """Write the inputs into the run folder; return the lines that sha256sum -c checks there."""
    local = directory / "inputs"
    local.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, array in enumerate(inputs):
        path = local / f"{index}.npy"
        np.save(path, array, allow_pickle=False)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{digest}  {path.name}\n")
        timeout = QUICK + path.stat().st_size / SLOWEST_LINK
        board.put(path, folder / path.name, timeout=timeout)
    return "".join(lines)


def _receive(
    board: Board, bundle: Bundle, report: ProgramReport, folder: PurePosixPath, directory: Path
) -> tuple[tuple[Array, ...], set[str]]:
    """Read the outputs back; return them and the digests of what arrived."""
    samples = _samples_of(report, bundle)
    local = directory / "outputs"
    local.mkdir(parents=True, exist_ok=True)
    arrays, digests = [], set()
    for index, spec in enumerate(bundle.outputs):
        path = local / f"{index}.npy"
        size = samples * int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
        limit = size + _NPY_HEADER
        # The name is ours: what the report says of paths is never opened.
        remote = folder / "out" / path.name
        board.get(remote, path, limit=limit, timeout=QUICK + limit / SLOWEST_LINK)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
        arrays.append(_load_output(path, spec, samples))
    return tuple(arrays), digests


def _samples_of(report: ProgramReport, bundle: Bundle) -> int:
    """Return S of the outputs after comparing each with the bundle's specification."""
    samples = report.outputs[0].shape[0] if report.outputs and report.outputs[0].shape else 0
    expected = [(each.dtype, (samples, *each.shape)) for each in bundle.outputs]
    if [(each.dtype, each.shape) for each in report.outputs] != expected:
        raise DeployFailed(
            "the device program wrote other outputs than the bundle has",
            why="; ".join(f"{each.dtype} {each.shape}" for each in report.outputs) or "none",
        )
    return samples


def _load_output(path: Path, spec: TensorSpec, samples: int) -> Array:
    try:
        array: Array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DeployFailed(f"output '{spec.name}' is not an .npy file", why=str(error)) from error
    if array.shape != (samples, *spec.shape) or array.dtype != np.dtype(spec.dtype):
        raise DeployFailed(
            f"output '{spec.name}' is not what the bundle says",
            why=f"{array.dtype} {array.shape}, not {spec.dtype} {(samples, *spec.shape)}",
        )
    return array


def _remove_quietly(board: Board, folder: PurePosixPath) -> None:
    """Remove the run folder where the board still answers; the error under way says more."""
    with contextlib.suppress(EdgeoptError):
        run_script(board, _CLOSE, (str(folder),), doing="remove the run folder")
