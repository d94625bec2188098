"""edgeopt's code against onnxruntime's on this machine, taking turns in one process.

    python -m tests.bench.native model.onnx ... [--target native --target x86-64] [--threads 2]
    python -m tests.bench.native --suite [--only mlp] --json build/bench/native.json

"native" is this machine as it is, "x86-64" the code of any machine with AVX2. Prints median and
minimum of both and the ratio of the minima, which a loaded machine says least wrongly; below 1
edgeopt is the faster one. The number of threads is that of the whole process.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.prepare import (
    NATIVE,
    Request,
    bench_target,
    draw_samples,
    prepare_model,
    print_table,
    read_options,
)
from tests.bench.results import Row, geometric_mean, write_rows

_WARMUP = 3


def open_peer(path: Path, threads: int) -> Any:
    """Open an onnxruntime session as its users do: every optimization, but no spinning."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Threads that spin take the processor from the other runtime while it has its turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compiled(path: Path, target: str) -> Callable[..., object]:
    """Compile a model for this process; the same kernels as a bundle, without the wire."""
    import tvm
    from tvm import relax

    from edgeopt.compile.build import build_executable, plan_module
    from edgeopt.compile.cpu import describe_cpu
    from edgeopt.compile.import_onnx import import_model
    from edgeopt.compile.lower import lower_module

    cpu = describe_cpu(bench_target(target))
    planned = plan_module(lower_module(import_model(path), cpu).module, cpu)
    machine = relax.VirtualMachine(build_executable(planned, cpu), tvm.cpu())
    run: Callable[..., object] = machine["main"]
    return run


def take_turns(rounds: int, *runs: Callable[[], object]) -> list[list[float]]:
    """Return the milliseconds of every call: one call of each in turn, after three for warmth."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + _WARMUP):
        for run, into in zip(runs, times, strict=True):
            started = time.perf_counter_ns()
            run()
            if number >= _WARMUP:
                into.append((time.perf_counter_ns() - started) / 1e6)
    return times


def compare_model(request: Request, targets: list[str], rounds: int, threads: int) -> list[Row]:
    """Measure onnxruntime and every target's code in turns; what does not compile says why."""
    import onnxruntime
    import tvm

    from edgeopt.store import digest_file, tool_versions

    source = request.project / request.spec
    name = source.stem if source.suffix == ".onnx" else request.spec
    model = prepare_model(request)
    feeds = {key: values[0] for key, values in draw_samples(model, 1).items()}
    peer = open_peer(model.path if request.changed else source, threads)
    tensors = [tvm.runtime.tensor(feeds[spec.name]) for spec in model.inputs]
    runs: list[Callable[[], object]] = [lambda: peer.run(None, feeds)]
    labels = [("any", "onnxruntime", onnxruntime.__version__)]
    digest, rows = digest_file(source) if source.is_file() else model.sha256, []
    for target in targets:
        code = tool_versions()["edgeopt"]
        try:
            run = compiled(model.path, target)
            run(*tensors)
        # Every model is tried; the table says which failed, and why.
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:160]}"
            rows.append(_row(name, digest, threads, (target, "edgeopt", code), error=why))
            continue
        runs.append(lambda run=run: run(*tensors))  # type: ignore[misc]
        labels.append((target, "edgeopt", code))
    for label, times in zip(labels, take_turns(rounds, *runs), strict=True):
        rows.append(_row(name, digest, threads, label, times))
    return rows


def _row(
    name: str,
    digest: str,
    threads: int,
    label: tuple[str, str, str],
    times: list[float] | None = None,
    *,
    error: str = "",
) -> Row:
    target, runtime, code = label
    return Row(
        model=name,
        digest=digest,
        target=target,
        threads=threads,
        runtime=runtime,
        code=code,
        unit="ms",
        median=statistics.median(times) if times else None,
        minimum=min(times) if times else None,
        error=error,
    )


def print_rows(rows: list[Row]) -> None:
    """Print each target's figures beside onnxruntime's, and the geometric mean of the ratios."""
    peers = {each.model: each for each in rows if each.runtime == "onnxruntime"}
    table: list[tuple[str, ...]] = [
        ("model", "target", "onnxruntime", "", "edgeopt", "", "ratio min", "ratio median")
    ]
    ratios: dict[str, list[float]] = {}
    for row in (each for each in rows if each.runtime == "edgeopt"):
        peer = peers.get(row.model)
        if row.minimum is None or row.median is None:
            table.append((row.model, row.target, "", "", row.error, "", "", ""))
        elif peer is not None and peer.minimum and peer.median:
            ratio = row.minimum / peer.minimum
            ratios.setdefault(row.target, []).append(ratio)
            figures = (peer.minimum, peer.median, row.minimum, row.median)
            shares = (f"{ratio:.2f}", f"{row.median / peer.median:.2f}")
            table.append((row.model, row.target, *(f"{each:.3f}" for each in figures), *shares))
    print_table(table)
    for target, found in ratios.items():
        print(f"{target}: geometric mean of {len(found)}: {geometric_mean(found):.3f}")


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", help=f"{NATIVE}, x86-64 (default: both)")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    requests, options = read_options(parser)
    # Read when TVM's thread pool starts.
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    rows = []
    for request in requests:
        rows += compare_model(
            request, options.target or [NATIVE, "x86-64"], options.rounds, options.threads
        )
    print_rows(rows)
    if options.json is not None:
        write_rows(options.json, rows)


if __name__ == "__main__":
    main()
