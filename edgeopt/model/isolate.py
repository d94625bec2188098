"""Run our own functions on untrusted models in a fresh process with limits.

A model can crash its parser, exhaust memory or never end. In a process of its own that is one
error with a reason. Requests and replies are JSON: nothing is unpickled.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from edgeopt.errors import ConfigError, ModelError

#: A reply is a few facts; more is not ours.
_REPLY_LIMIT = 64 * 2**20
#: What the stderr of a worker that died is kept in, inside the directory of the stage.
LOG = "worker.log"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use: wall and CPU seconds, bytes of address space and of one file."""

    wall: float = 900
    cpu: int = 1800
    #: onnxruntime and numpy reserve far more addresses than they ever use.
    address_space: int = 48 * 2**30
    file: int = 8 * 2**30


@dataclass(frozen=True, slots=True)
class _Worker:
    """A process that answers one request, and where it tells its troubles."""

    process: subprocess.Popen[bytes]
    stderr: IO[bytes]

    def end(self) -> None:
        """End its whole group, whatever the reason for leaving."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout, self.stderr):
            if stream is not None:
                stream.close()
        self.process.wait()


class Standby:
    """Workers that import what their functions need before there is a model to give them.

    They have the usual limits. Those that nobody asked are ended when this is left.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, _Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._waiting:
            self._waiting.popitem()[1].end()

    def start(self, function: str) -> None:
        """Start the worker of a function, unless there is one."""
        if function not in self._waiting:
            self._waiting[function] = _start(function, Limits())

    def take(self, function: str) -> _Worker | None:
        """Return the worker of a function, if there is one: it is the caller's to end."""
        return self._waiting.pop(function, None)


def run_isolated(
    function: str,
    request: Mapping[str, object],
    *,
    directory: Path,
    limits: Limits | None = None,
    standby: Standby | None = None,
) -> dict[str, object]:
    """Run one function of edgeopt.model.worker.FUNCTIONS in directory and return its reply.

    standby: where a worker may wait for this; one has the usual limits. Raises the ConfigError or
    ModelError that the function raised, and ModelError when the process crashed, ran out of memory
    or out of time.
    """
    message = json.dumps({"directory": str(directory), "request": dict(request)})
    wall = (limits or Limits()).wall
    waiting = standby.take(function) if standby is not None and limits is None else None
    worker = waiting or _start(function, limits or Limits())
    try:
        reply, _ = worker.process.communicate(message.encode(), timeout=wall)
        if worker.process.returncode != 0:
            raise _death(function, worker, directory / LOG)
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            "reading the model took too long",
            why=f"{function} did not end within {wall:.0f} s",
            fix="check the model with onnxruntime; a smaller one may be needed",
        ) from error
    finally:
        worker.end()
    return _decode(reply)


def _start(function: str, limits: Limits) -> _Worker:
    # -P: a file named like a library, in the directory of the run, must not be imported.
    argv = [sys.executable, "-P", "-m", "edgeopt.model.worker", function]
    # It has no name, so that nothing of it is left however this process ends.
    stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
    process = subprocess.Popen(
        [*argv, json.dumps(asdict(limits))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )
    return _Worker(process, stderr)


def _death(function: str, worker: _Worker, log: Path) -> ModelError:
    """Keep what a worker that died said in a file, and say in an error why it did."""
    worker.stderr.seek(0)
    log.write_bytes(worker.stderr.read())
    ours = function != "export"
    return ModelError(
        "the model cannot be read" if ours else "the factory of the model failed",
        why=_reason(worker.process.returncode, log),
        fix=("check it with onnx.checker" if ours else "call it in Python to see where")
        + f"; the whole story is in {log}",
    )


def _reason(status: int, log: Path) -> str:
    """Say in one line how the worker died."""
    if status < 0:
        name = signal.Signals(-status).name
        known = {"SIGXCPU": "it used up its CPU time", "SIGKILL": "it was killed: memory?"}
        return known.get(name, f"its parser crashed with {name}")
    lines = log.read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else f"status {status}"
    return "it needs more memory than allowed" if last.startswith("MemoryError") else last[:400]


def _decode(reply: bytes) -> dict[str, object]:
    """Return the result in a reply, or raise the error in it."""
    if len(reply) > _REPLY_LIMIT:
        raise ModelError("the model cannot be read", why="its description is larger than 64 MiB")
    try:
        message = json.loads(reply)
    except ValueError as silence:
        raise ModelError(
            "the model cannot be read",
            why="its process ended without an answer: does a factory call sys.exit()?",
            fix="let the factory return (module, {'input_name': tensor, ...})",
        ) from silence
    error = message.get("error")
    if error is None:
        result: dict[str, object] = message["result"]
        return result
    kind = ConfigError if error["kind"] == "ConfigError" else ModelError
    raise kind(error["what"], why=error["why"], fix=error["fix"])
