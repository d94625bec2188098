"""Run the node cases of onnx.backend.test through edgeopt's compiler on this machine.

Each case's model goes the way of every model: import, kernels, fusion, schedules, static memory
plan, code for AVX2; then it runs in this process and its outputs are compared with the case's own,
in shape, type and value, with the case's own tolerances.

Inputs that decide about shapes, or that every real model stores (axes, sizes, pads, counts), are
graph inputs in these cases. edgeopt compiles for fixed shapes, so they become constants with the
case's values here, as `--value` does it for a deployed model; which ones, SHAPING lists.

Cases run in worker processes, since code that crashes must end neither the rest nor the report.
Run as `python -m tests.host.backend_nodes` for a summary; `-h` for its options.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Array = np.ndarray[Any, Any]

#: Inputs by operator that are made constant: those that shapes or algorithms depend on, and the
#: weights that are packed when a model is compiled.
SHAPING: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "ConvTranspose": (1,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "Expand": (1,),
    "GRU": (1, 2, 3),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "LSTM": (1, 2, 3, 7),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "RNN": (1, 2, 3),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}

#: The distance from 1 to the next number of a type of 16 bits.
_UNITS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}

#: Seconds after which a case counts as hanging.
_PATIENCE = 120


#: The cases that do not pass, in groups with a reason each.
LISTED = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True, slots=True)
class Group:
    """Cases that are refused for one reason."""

    reason: str
    #: Whether they are training, or their shapes depend on values: beyond what edgeopt is for.
    outside: bool
    cases: frozenset[str]


def read_groups() -> tuple[Group, ...]:
    """Read the list of cases that do not pass."""
    groups = tomllib.loads(LISTED.read_text())["group"]
    return tuple(
        Group(each["reason"], each.get("outside", False), frozenset(each["cases"]))
        for each in groups
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case."""

    name: str
    #: "pass"; "refused" with an error of edgeopt's; "wrong"; "crash" for everything else.
    status: str
    detail: str
    seconds: float


def load_cases() -> dict[str, Any]:
    """Collect the node cases; their data are drawn and computed now."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        return {case.name: case for case in load_model_tests(kind="node")}


def prepare(case: Any, origin: Any) -> tuple[onnx.ModelProto, list[Array]]:
    """Make constants of the inputs that shapes depend on; return the model and its other inputs.

    origin is the case that this one was expanded from, or the case itself.
    """
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    fixed = {
        node.input[place]
        for node in origin.model.graph.node
        for place in SHAPING.get(node.op_type, ())
        if place < len(node.input)
    }
    feeds = []
    kept = []
    for value, given in zip(model.graph.input, case.data_sets[0][0], strict=True):
        array = _plain(given)
        if value.name in fixed and isinstance(array, np.ndarray):
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        else:
            kept.append(value)
            feeds.append(array)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model, feeds


def _carried(value: Any) -> Array:
    """Write numbers of a narrow type as the bytes that a compiled model takes and gives."""
    from edgeopt.compile.operators.narrow import CARRIERS, carry

    array = np.asarray(value)
    return carry(array) if array.dtype.name in CARRIERS else array


def _plain(value: Any) -> Any:
    """Read an array that a case stores as a message or as a number."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def origin_of(name: str, cases: dict[str, Any]) -> Any:
    """Find the case that an expanded one was made from."""
    return cases.get(re.sub(r"_expanded(_ver\d+)?$", "", name), cases[name])


def run_case(case: Any, origin: Any) -> tuple[str, str]:
    """Compile and run one case; return its status and the reason for it."""
    from edgeopt.errors import EdgeoptError

    try:
        found = _compute(*prepare(case, origin), name=case.name)
    except EdgeoptError as error:
        return "refused", f"{error.what}: {error.why}"
    wanted = case.data_sets[0][1]
    if len(found) != len(wanted):
        return "wrong", f"{len(found)} outputs instead of {len(wanted)}"
    for place, (a, b) in enumerate(zip(found, wanted, strict=True)):
        reason = _difference(a, _carried(_plain(b)), case.rtol, case.atol)
        if reason:
            return "wrong", f"output {place}: {reason}"
    return "pass", ""


def _compute(model: onnx.ModelProto, feeds: Sequence[Array], *, name: str) -> list[Array]:
    import tvm
    from tvm import relax

    from edgeopt.compile.build import build_executable, plan_module
    from edgeopt.compile.cpu import describe_cpu
    from edgeopt.compile.import_onnx import import_proto
    from edgeopt.compile.lower import lower_module
    from tests.compile.kit import make_target

    cpu = describe_cpu(make_target("x86_64"))
    planned = plan_module(lower_module(import_proto(model, name), cpu).module, cpu)
    machine = relax.VirtualMachine(build_executable(planned, cpu), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(_carried(value)) for value in feeds))
    outputs = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    return [output.numpy() for output in outputs]


def _difference(found: Array, wanted: Array, rtol: float, atol: float) -> str:
    if found.dtype != wanted.dtype:
        return f"type {found.dtype} instead of {wanted.dtype}"
    if found.shape != wanted.shape:
        return f"shape {found.shape} instead of {wanted.shape}"
    if wanted.dtype.name in _UNITS:
        # Where a sum is rounded on the way is nobody's promise: two units in the last place.
        rtol = max(rtol, 2 * _UNITS[wanted.dtype.name])
    if wanted.dtype.kind not in "biufc":
        found, wanted = found.astype(np.float32), wanted.astype(np.float32)
    try:
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)
    except AssertionError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return "; ".join(lines[1:5])
    return ""


def _work(cases: dict[str, Any], channel: Connection) -> None:
    """Answer names of cases with their status until there are no more."""
    warnings.simplefilter("ignore")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    while (name := channel.recv()) is not None:
        try:
            answer = run_case(cases[name], origin_of(name, cases))
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            answer = "crash", f"{type(error).__name__}: {' | '.join(lines[-2:])[:300]}"
        channel.send(answer)


class _Worker:
    """A process that runs cases one at a time."""

    def __init__(self, cases: dict[str, Any]) -> None:
        context = multiprocessing.get_context("fork")
        self.channel, theirs = context.Pipe()
        self.process: ForkProcess = context.Process(target=_work, args=(cases, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.name = ""
        self.since = 0.0

    def give(self, name: str) -> None:
        """Start a case."""
        self.name, self.since = name, time.monotonic()
        self.channel.send(name)

    def take(self) -> Outcome:
        """Receive the answer, or learn that the process died of the case."""
        try:
            status, detail = self.channel.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            status, detail = "crash", f"the process ended with {self.process.exitcode}"
        return Outcome(self.name, status, detail, time.monotonic() - self.since)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def run_cases(names: Iterable[str], cases: dict[str, Any], *, workers: int) -> list[Outcome]:
    """Run the named cases in so many processes."""
    import tvm  # noqa: F401  # before the fork, so that no worker has to

    waiting = list(reversed(list(names)))
    crew = [_Worker(cases) for _ in range(min(workers, len(waiting)))]
    for worker in crew:
        worker.give(waiting.pop())
    outcomes = []
    while crew:
        ready = wait([worker.channel for worker in crew], timeout=1.0)
        for worker in list(crew):
            late = time.monotonic() - worker.since > _PATIENCE
            if worker.channel not in ready and not late:
                continue
            if worker.channel in ready:
                outcomes.append(worker.take())
            else:
                outcomes.append(Outcome(worker.name, "crash", "it hangs", _PATIENCE))
            crew.remove(worker)
            if late or not worker.process.is_alive():
                worker.stop()
                worker = _Worker(cases)
            if waiting:
                worker.give(waiting.pop())
                crew.append(worker)
            else:
                worker.stop()
    return outcomes


def main() -> None:
    """Run all cases, or those whose name matches, and print what became of them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("pattern", nargs="?", default=".", help="a regular expression")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the outcomes there")
    options = parser.parse_args()
    cases = load_cases()
    names = [name for name in cases if re.search(options.pattern, name)]
    outcomes = run_cases(names, cases, workers=options.workers)
    for outcome in sorted(outcomes, key=lambda each: (each.status, each.detail)):
        if outcome.status != "pass":
            sys.stdout.write(f"{outcome.status} {outcome.name}: {outcome.detail}\n")
    sys.stdout.write(f"{dict(Counter(each.status for each in outcomes))}\n")
    if options.json:
        options.json.write_text(
            json.dumps({e.name: [e.status, e.detail, e.seconds] for e in outcomes})
        )


if __name__ == "__main__":
    main()
