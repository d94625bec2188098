"""edgeopt's code against onnxruntime's on this machine: one thread each, taking turns.

    python -m tests.bench.latency questions:build --project questions [--plan float16]

The model's shapes must be fixed, and its plan none that needs calibration. Prints median and
minimum of both and their ratios; below 1 edgeopt is the faster one. Turns in one process see the
same load and the same clock; the minimum is what a loaded machine says least wrongly.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import tvm
from tvm import relax

from edgeopt.compile.build import build_executable, plan_module
from edgeopt.compile.cpu import describe_cpu
from edgeopt.compile.import_onnx import import_model
from edgeopt.compile.lower import lower_module
from edgeopt.compress import apply_plan, make_plan
from edgeopt.model import load_model, normalize_model
from edgeopt.model.oracle import open_session, seeded_inputs
from edgeopt.target import load_target


def compiled(path: Path, target: str) -> Callable[..., object]:
    """Compile a model for this process; the same kernels as a bundle, without the wire."""
    cpu = describe_cpu(load_target(target))
    planned = plan_module(lower_module(import_model(path), cpu).module, cpu)
    machine = relax.VirtualMachine(build_executable(planned, cpu), tvm.cpu())
    run: Callable[..., object] = machine["main"]
    return run


def take_turns(rounds: int, *runs: Callable[[], object]) -> list[list[float]]:
    """Return the milliseconds of every call: one call of each in turn, after three for warmth."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 3):
        for run, into in zip(runs, times, strict=True):
            started = time.perf_counter_ns()
            run()
            if number >= 3:
                into.append((time.perf_counter_ns() - started) / 1e6)
    return times


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model.onnx or module:factory")
    parser.add_argument("--project", type=Path, default=Path())
    parser.add_argument("--target", default="x86-64")
    parser.add_argument("--plan", default="float32")
    parser.add_argument("--rounds", type=int, default=61)
    options = parser.parse_args()
    work = Path("build") / "bench"
    loaded = load_model(options.model, directory=work, search=options.project)
    model = normalize_model(loaded, shapes={}, directory=work)
    plan = make_plan(model, options.plan, directory=work)
    model = apply_plan(model, plan, directory=work)
    feeds = seeded_inputs(model, 0)
    session = open_session(model.path)
    run = compiled(model.path, options.target)
    tensors = [tvm.runtime.tensor(feeds[spec.name]) for spec in model.inputs]
    peer, ours = take_turns(options.rounds, lambda: session.run(None, feeds), lambda: run(*tensors))
    for name, times in (("onnxruntime", peer), ("edgeopt", ours)):
        print(f"{name:<12} median {statistics.median(times):.3f} ms, min {min(times):.3f} ms")
    print(
        f"edgeopt / onnxruntime: median {statistics.median(ours) / statistics.median(peer):.2f}, "
        f"min {min(ours) / min(peer):.2f} "
        f"({options.plan}, {options.target}, 1 thread, {options.rounds} rounds)"
    )


if __name__ == "__main__":
    main()
