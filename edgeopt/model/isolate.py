"""Run our own functions on untrusted models in a fresh process with limits.

A model can crash its parser, exhaust memory or never end. In a process of its own that is one
error with a reason. Requests and replies are JSON: nothing is unpickled.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeopt.errors import ConfigError, ModelError

#: A reply is a few facts; more is not ours.
_REPLY_LIMIT = 64 * 2**20
#: What the worker's stderr is kept in, inside the directory of the stage.
LOG = "worker.log"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use: wall and CPU seconds, bytes of address space and of one file."""

    wall: float = 900
    cpu: int = 1800
    #: onnxruntime and numpy reserve far more addresses than they ever use.
    address_space: int = 48 * 2**30
    file: int = 8 * 2**30


def run_isolated(
    function: str, request: Mapping[str, object], *, directory: Path, limits: Limits | None = None
) -> dict[str, object]:
    """Run one function of edgeopt.model.worker.FUNCTIONS in directory and return its reply.

    Raises the ConfigError or ModelError that the function raised, and ModelError when the
    process crashed, ran out of memory or out of time.
    """
    limits = limits or Limits()
    message = {"function": function, "request": dict(request), "limits": asdict(limits)}
    # -P: a file named like a library, in the directory of the run, must not be imported.
    argv = [sys.executable, "-P", "-m", "edgeopt.model.worker"]
    log = directory / LOG
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=directory,
            start_new_session=True,
        ) as process,
    ):
        try:
            reply, _ = process.communicate(json.dumps(message).encode(), timeout=limits.wall)
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                "reading the model took too long",
                why=f"{function} did not end within {limits.wall:.0f} s",
                fix="check the model with onnxruntime; a smaller one may be needed",
            ) from error
        finally:
            _kill(process)
    if process.returncode != 0:
        ours = function != "export"
        raise ModelError(
            "the model cannot be read" if ours else "the factory of the model failed",
            why=_reason(process.returncode, log),
            fix=("check it with onnx.checker" if ours else "call it in Python to see where")
            + f"; the whole story is in {log}",
        )
    log.unlink()
    return _decode(reply)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the worker's whole group, whatever the reason for leaving."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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
