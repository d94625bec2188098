"""Instructions per inference on an emulated board, the kernel's left out.

    python -m tests.bench.instructions model.onnx [--target rpi4 --target rpi5] [--shape x=1x32]
    python -m tests.bench.instructions model.onnx --target native     (milliseconds, this machine)

Compiles the model for each target, runs it on the target's emulated board (started when it does
not run), compares its outputs with onnxruntime's and prints the median and the peak memory. Calls
from several processes take turns on a board; each removes what it sent. With --json, what the file
holds of the same model file and code is not counted again: instructions repeat.
"""

import argparse
import contextlib
import secrets
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypedDict

from filelock import FileLock

from edgeopt.artifact import Bundle, Model
from edgeopt.board import Board
from edgeopt.board.emulator import default_cache, open_emulated
from edgeopt.board.facts import read_facts
from edgeopt.board.local import LocalBoard
from edgeopt.board.script import run_script
from edgeopt.deploy import stage_bundle
from edgeopt.errors import EdgeoptError
from edgeopt.program import run_program
from edgeopt.store import digest_file
from edgeopt.target import Target
from edgeopt.verify import make_parity
from tests.bench.prepare import (
    NATIVE,
    Request,
    bench_target,
    compile_bundle,
    draw_samples,
    prepare_model,
    print_table,
    read_options,
)
from tests.bench.results import (
    Row,
    Unit,
    find_row,
    geometric_mean,
    ratios_by_kind,
    read_rows,
    write_rows,
)

_REMOVE = 'case $1 in */bench-*) chmod -R u+w "$1" && rm -rf "$1";; esac\n'


class Place(TypedDict):
    """What both runtimes' rows have in common."""

    model: str
    digest: str
    target: str
    threads: int
    unit: Unit


@dataclass(frozen=True, slots=True)
class OnBoard:
    """What one model did on one board."""

    #: Each timed inference in ns: instructions where the board is emulated.
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


def measure_model(request: Request, names: list[str], options: argparse.Namespace) -> list[Row]:
    """Measure one model on every target, and onnxruntime beside it where that is asked for."""
    source = request.project / request.spec
    name = source.stem if source.suffix == ".onnx" else request.spec
    model = prepare_model(request)
    digest = digest_file(source) if source.is_file() else model.sha256
    known = read_rows(options.json) if options.json is not None else []
    rows = []
    for target_name in names:
        target = bench_target(target_name)
        place: Place = {
            "model": name,
            "digest": digest,
            "target": target_name,
            "threads": options.threads,
            "unit": "ms" if target_name == NATIVE else "M user instructions",
        }
        rows.append(_measure_ours(model, target, place, options.rounds, known))
        if options.peer and target.isa.machine == "aarch64":
            path = model.path if request.changed else source
            rows.append(_measure_peer(path, model, target, place, options.rounds, known))
    return rows


def _measure_ours(
    model: Model, target: Target, place: Place, rounds: int, known: Sequence[Row]
) -> Row:
    try:
        bundle = compile_bundle(model, target)
    # Every model is tried; the table says which failed, and why.
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:160]}"
        return Row(**place, runtime="edgeopt", code="", error=why)
    found = find_row(known, Row(**place, runtime="edgeopt", code=bundle.digest))
    if found is not None and target.name != NATIVE:
        return found
    try:
        with exclusive_board(target) as board:
            seen = measure_bundle(
                board, bundle, model, warmup=1, rounds=rounds, threads=place["threads"]
            )
    except EdgeoptError as error:
        why = f"{error.what}: {error.why}"[:200]
        return Row(**place, runtime="edgeopt", code=bundle.digest, error=why)
    return Row(
        **place,
        runtime="edgeopt",
        code=bundle.digest,
        median=seen.median,
        minimum=min(seen.samples_ns) / 1e6,
        peak=seen.peak,
        expected=seen.weights + seen.arena,
        difference=seen.difference,
    )


def _measure_peer(
    path: Path, model: Model, target: Target, place: Place, rounds: int, known: Sequence[Row]
) -> Row:
    from tests.bench.peer import VERSION, measure_peer

    found = find_row(known, Row(**place, runtime="onnxruntime", code=VERSION))
    if found is not None:
        return found
    try:
        with exclusive_board(target) as board:
            seen = measure_peer(board, path, model, warmup=1, rounds=rounds)
    except EdgeoptError as error:
        why = f"{error.what}: {error.why}"[:200]
        return Row(**place, runtime="onnxruntime", code=VERSION, error=why)
    return Row(
        **place,
        runtime="onnxruntime",
        code=VERSION,
        median=statistics.median(seen.samples_ns) / 1e6,
        minimum=min(seen.samples_ns) / 1e6,
        peak=seen.peak,
    )


def print_rows(rows: list[Row]) -> None:
    """Print each figure, and the ratio to onnxruntime's where that was measured."""
    peers = {each.place: each for each in rows if each.runtime == "onnxruntime"}
    head = ("model", "target", "edgeopt", "onnxruntime", "ratio")
    table: list[tuple[str, ...]] = [
        (*head, "peak MB", "weights + arena", "beyond", "difference", "")
    ]
    for row in (each for each in rows if each.runtime == "edgeopt"):
        peer = peers.get(row.place)
        theirs = peer.median if peer is not None else None
        ratio = row.median / theirs if row.median and theirs else None
        table.append(
            (
                row.model,
                row.target,
                _written(row.median, 3),
                _written(theirs, 3),
                _written(ratio, 2),
                _written(row.peak and row.peak / 1e6, 2),
                _written(row.expected and row.expected / 1e6, 2),
                _written(row.peak and row.expected and (row.peak - row.expected) / 1e6, 2),
                "" if row.difference is None else f"{row.difference:.1e}",
                row.error or (row.unit if peer is None else peer.error),
            )
        )
    print_table(table)
    for (target, kind), found in ratios_by_kind(rows).items():
        worst = max(found, key=lambda model: found[model])
        mean = geometric_mean(found.values())
        print(
            f"{target}, {kind}: mean {mean:.3f} of {len(found)}, worst {found[worst]:.2f} {worst}"
        )


def _written(figure: float | None, places: int) -> str:
    return "" if figure is None else f"{figure:.{places}f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", help="rpi4, rpi5, native (default: rpi4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", action="store_true", help="onnxruntime on the board as well")
    requests, options = read_options(parser)
    rows: list[Row] = []
    for request in requests:
        found = measure_model(request, options.target or ["rpi4"], options)
        rows += found
        if options.json is not None:
            write_rows(options.json, found)
    print_rows(rows)


if __name__ == "__main__":
    main()
