"""edgeopt's code against other runtimes on this machine, taking turns in one process.

    python -m tests.bench.native model.onnx ... [--target native --target x86-64] [--threads 2]
    python -m tests.bench.native --suite [--only mlp] [--peer openvino --peer ncnn] --json F

"native" is this machine as it is, "x86-64" the code of any machine with AVX2. Prints the minimum
of each in ms and the ratios of the minima, which a loaded machine says least wrongly; below 1
edgeopt is the faster one. The number of threads is that of the whole process. A peer whose
outputs are not onnxruntime's is left out: it computes another model.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.artifact import Model
from edgeopt.store import digest_file, tool_versions
from tests.bench.peers import OPENERS, difference
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
#: Codes that round the other way move an output by a step; a wrong model moves it by its size.
_SAME_MODEL = 0.2


def compiled(path: Path, target: str) -> Callable[..., object]:
    """Compile a model for this process; the same kernels as a bundle, without the wire."""
    from edgeopt.compile.build import plan_module
    from edgeopt.compile.cpu import describe_cpu
    from edgeopt.compile.import_onnx import import_model
    from edgeopt.compile.in_process import open_machine
    from edgeopt.compile.lower import lower_module

    cpu = describe_cpu(bench_target(target))
    planned = plan_module(lower_module(import_model(path), cpu).module, cpu)
    run: Callable[..., object] = open_machine(planned, cpu)["main"]
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


def compare_model(request: Request, options: argparse.Namespace) -> list[Row]:
    """Measure every peer and every target's code in turns; what does not run says why."""
    source = request.project / request.spec
    name = source.stem if source.suffix == ".onnx" else request.spec
    model = prepare_model(request)
    path = model.path if request.changed else source
    digest = digest_file(source) if source.is_file() else model.sha256
    feeds = {key: values[0] for key, values in draw_samples(model, 1).items()}
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as work:
        entries = [
            *_open_peers(path, feeds, options, Path(work)),
            *(_open_own(model, feeds, target) for target in options.target),
        ]
        ready = [each for each in entries if each.run is not None]
        turns = take_turns(options.rounds, *(each.run for each in ready if each.run is not None))
    times = {id(each): turn for each, turn in zip(ready, turns, strict=True)}
    return [_row(name, digest, options.threads, each, times.get(id(each))) for each in entries]


@dataclass(frozen=True, slots=True)
class Entry:
    """One runtime in the race, or why it is not."""

    target: str
    runtime: str
    code: str
    run: Callable[[], object] | None = None
    difference: float | None = None
    error: str = ""


def _open_peers(
    path: Path, feeds: dict[str, Any], options: argparse.Namespace, work: Path
) -> list[Entry]:
    entries: list[Entry] = []
    expected: list[Any] = []
    for name in ("onnxruntime", *options.peer):
        folder = work / name
        folder.mkdir()
        try:
            peer = OPENERS[name](path, feeds, threads=options.threads, work=folder)
            found = peer.run()
            expected = expected or found
            gap = difference(found, expected)
        # Every runtime is tried; the table says which failed, and why.
        except Exception as error:
            entries.append(Entry("any", name, "", error=_why(error)))
            continue
        if gap <= _SAME_MODEL:
            entries.append(Entry("any", name, peer.version, peer.run, gap))
        else:
            entries.append(Entry("any", name, peer.version, error=f"outputs differ by {gap:.1e}"))
    return entries


def _open_own(model: Model, feeds: dict[str, Any], target: str) -> Entry:
    import tvm

    code = tool_versions()["edgeopt"]
    tensors = [tvm.runtime.tensor(feeds[spec.name]) for spec in model.inputs]
    try:
        run = compiled(model.path, target)
        run(*tensors)
    # As above.
    except Exception as error:
        return Entry(target, "edgeopt", code, error=_why(error))
    return Entry(target, "edgeopt", code, lambda: run(*tensors))


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1][:160]}"


def _row(name: str, digest: str, threads: int, entry: Entry, times: list[float] | None) -> Row:
    return Row(
        model=name,
        digest=digest,
        target=entry.target,
        threads=threads,
        runtime=entry.runtime,
        code=entry.code,
        unit="ms",
        median=statistics.median(times) if times else None,
        minimum=min(times) if times else None,
        difference=entry.difference,
        error=entry.error,
    )


def print_rows(rows: list[Row]) -> None:
    """Print each target's figures beside the peers', and the geometric means of the ratios."""
    names = list(dict.fromkeys(each.runtime for each in rows if each.runtime != "edgeopt"))
    found = {(each.model, each.runtime): each for each in rows if each.runtime != "edgeopt"}
    header = ("model", "target", "edgeopt", *names, "/ onnxruntime", "/ best", "median ratio")
    table: list[tuple[str, ...]] = [header]
    ratios: dict[tuple[str, str], list[float]] = {}
    for row in (each for each in rows if each.runtime == "edgeopt"):
        peers = [found[row.model, name] for name in names]
        cells = [_milliseconds(row), *(_milliseconds(each) for each in peers)]
        measured = [each for each in peers if each.minimum]
        if row.minimum and row.median and measured and peers[0].minimum and peers[0].median:
            first = row.minimum / peers[0].minimum
            best = row.minimum / min(each.minimum for each in measured if each.minimum)
            ratios.setdefault((row.target, "onnxruntime"), []).append(first)
            ratios.setdefault((row.target, "the best peer"), []).append(best)
            cells += [f"{first:.2f}", f"{best:.2f}", f"{row.median / peers[0].median:.2f}"]
        table.append((row.model, row.target, *cells, *[""] * (len(header) - 2 - len(cells))))
    print_table(table)
    for (target, against), each in ratios.items():
        mean = geometric_mean(each)
        print(f"{target}: geometric mean of {len(each)} against {against}: {mean:.3f}")
    for row in (each for each in rows if each.error):
        print(f"{row.model}: {row.runtime} is left out: {row.error}")


def _milliseconds(row: Row) -> str:
    return "-" if row.minimum is None else f"{row.minimum:.3f}"


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", help=f"{NATIVE}, x86-64 (default: both)")
    parser.add_argument(
        "--peer", action="append", default=[], choices=sorted({*OPENERS} - {"onnxruntime"})
    )
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    requests, options = read_options(parser)
    # Read when TVM's thread pool starts.
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    # Nor may ncnn's idle threads, which OpenMP has, spin while another runtime has its turn.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    options.target = options.target or [NATIVE, "x86-64"]
    rows: list[Row] = []
    for request in requests:
        rows += compare_model(request, options)
    print_rows(rows)
    if options.json is not None:
        write_rows(options.json, rows)


if __name__ == "__main__":
    main()
