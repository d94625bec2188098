"""Instructions per inference on an emulated board, where one nanosecond is one instruction.

    python -m tests.bench.instructions model.onnx [--target rpi4 --target rpi5] [--shape x=1x32]
    python -m tests.bench.instructions model.onnx --target native     (milliseconds, this machine)

Compiles the model for each target, runs it on the target's emulated board (started when it does
not run), compares its outputs with onnxruntime's and prints the median and the peak memory. Calls
from several processes take turns on a board; each removes what it sent.
"""

import argparse
import contextlib
import secrets
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from edgeopt.artifact import Bundle, Model
from edgeopt.board import Board
from edgeopt.board.emulator import default_cache, open_emulated
from edgeopt.board.facts import read_facts
from edgeopt.board.local import LocalBoard
from edgeopt.board.script import run_script
from edgeopt.deploy import stage_bundle
from edgeopt.program import run_program
from edgeopt.target import Target
from edgeopt.verify import make_parity
from tests.bench.prepare import (
    NATIVE,
    add_model_options,
    bench_target,
    compile_bundle,
    draw_samples,
    prepare_model,
    print_table,
    read_request,
)

_REMOVE = 'case $1 in */bench-*) chmod -R u+w "$1" && rm -rf "$1";; esac\n'


@dataclass(frozen=True, slots=True)
class OnBoard:
    """What one model did on one board."""

    #: Duration of each timed inference in ns: instructions where the board is emulated.
    samples_ns: tuple[int, ...]
    #: VmHWM of the device program in bytes, and what the bundle predicts of it.
    peak: int
    weights: int
    arena: int
    #: Largest difference from onnxruntime, relative to the largest value of the output.
    difference: float

    @property
    def median(self) -> float:
        """Millions of ns (milliseconds), or millions of instructions."""
        return statistics.median(self.samples_ns) / 1e6


@contextlib.contextmanager
def exclusive_board(target: Target) -> Iterator[Board]:
    """Hold a board that nobody else measures on: two programs in one guest would share counts."""
    name = target.name
    place = default_cache() / "bench" / f"board-{name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place):
        board: Board = LocalBoard() if name == NATIVE else open_emulated(target)
        try:
            yield board
        finally:
            board.close()


def measure_bundle(
    board: Board, bundle: Bundle, model: Model, *, warmup: int, rounds: int, threads: int = 1
) -> OnBoard:
    """Install a bundle under a folder of its own, run it, compare it and remove the folder."""
    from edgeopt.model.oracle import run_samples

    feeds = draw_samples(model, 1)
    root = PurePosixPath(f"~/.edgeopt/bench-{secrets.token_hex(6)}")
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as work:
        release = stage_bundle(bundle, board, facts=read_facts(board), app="bench", root=root)
        try:
            run = run_program(
                release,
                bundle,
                board,
                feeds=feeds,
                warmup=warmup,
                iterations=rounds,
                threads=threads,
                directory=Path(work),
            )
        finally:
            made = PurePosixPath(release.path).parents[3]
            run_script(board, _REMOVE, (str(made),), doing="remove the benchmark")
    names = [each.name for each in bundle.outputs]
    parity = make_parity(run.outputs, run_samples(model, feeds), names=names)
    return OnBoard(
        samples_ns=run.report.samples_ns,
        peak=run.report.memory.peak,
        weights=bundle.footprint.weights,
        arena=bundle.footprint.arena,
        difference=parity.max_rel,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--target", action="append", help="rpi4, rpi5, native (default: rpi4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model = prepare_model(read_request(options))
    rows = [("target", "median", "", "peak MB", "weights MB", "arena MB", "difference")]
    for name in options.target or ["rpi4"]:
        target = bench_target(name)
        bundle = compile_bundle(model, target)
        with exclusive_board(target) as board:
            seen = measure_bundle(
                board, bundle, model, warmup=1, rounds=options.rounds, threads=options.threads
            )
        unit = "ms" if name == NATIVE else "M instructions"
        memory = (f"{each / 1e6:.2f}" for each in (seen.peak, seen.weights, seen.arena))
        rows.append((name, f"{seen.median:.3f}", unit, *memory, f"{seen.difference:.1e}"))
    print_table(rows)


if __name__ == "__main__":
    main()
