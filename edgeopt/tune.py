"""Try the tiles of a model's largest products on the board, and say which ones are better."""

import datetime
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import edgeopt
from edgeopt.artifact import Bundle, Model, Release
from edgeopt.board import Board
from edgeopt.board.facts import BoardFacts
from edgeopt.job import Run
from edgeopt.pipeline import LEASE_SECONDS, fit_model
from edgeopt.program import run_program
from edgeopt.scratch import scratch
from edgeopt.tiles import Tile, TileKey, TunedTile, measured_on
from edgeopt.trial import ROOT
from edgeopt.verify import check_parity, make_parity

#: Tiles of one product that are tried, the default among them.
MOST_TILES = 6
#: A tile must be better by more than this share: less is not worth a deviation from the default.
WORTH = 0.02
#: Times that all tiles are launched in turn, there and back, where time is measured.
_PASSES = 3
#: Nanoseconds that one launch should take, and its inferences at least and at most.
_LAUNCH_NS = 30_000_000
_FEWEST, _MOST = 5, 500
#: Inferences that tell how long one takes.
_PROBE = 5
#: Inferences whose instructions are counted: the board's own work may fall into one of them.
_COUNTED = 3

#: Runs a tile's code so many times and returns its samples, ns or instructions.
Launch = Callable[[Tile, int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One product of a model, as a model of its own, and the tiles that it may have."""

    key: TileKey
    model: Model
    #: The default first.
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found for a kernel, and the fastest sample of each tile, the default first."""

    tuned: TunedTile
    fastest: dict[Tile, int]


@dataclass(frozen=True, slots=True)
class Story:
    """Who is told of a kernel that begins, and of what was found for it."""

    begin: Callable[[Kernel], None]
    found: Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class _Bench:
    """A board that is ours for now."""

    run: Run
    board: Board
    facts: BoardFacts


def tune_model(run: Run, connect: Callable[[], Board], *, kernels: int, story: Story) -> None:
    """Tune the products of most work of the model that deploy would compile.

    What is found is told at once, so that nothing is lost when the user stops it.
    """
    from edgeopt.board.facts import read_facts
    from edgeopt.board.lease import hold

    fitted = fit_model(run).fit.model
    board = connect()
    try:
        with (
            scratch() as work,
            hold(board, ROOT, owner=f"edgeopt tune {run.job.app}", seconds=LEASE_SECONDS) as lease,
        ):
            bench = _Bench(run, lease.board, read_facts(lease.board))
            for kernel in _kernels(run, fitted, kernels, work):
                lease.renew(LEASE_SECONDS)
                story.begin(kernel)
                with tempfile.TemporaryDirectory(dir=work) as own:
                    story.found(_tune_kernel(bench, kernel, Path(own)))
    finally:
        board.close()


def _kernels(run: Run, model: Model, most: int, work: Path) -> Iterator[Kernel]:
    """Find the products of most work whose kernel has a choice of tiles, each key once."""
    from edgeopt.compile.tuning import find_choices, rank_tiles
    from edgeopt.model.product import extract_product, find_products

    seen: set[TileKey] = set()
    for number, product in enumerate(find_products(model)):
        if len(seen) == most:
            return
        one = extract_product(model, product, directory=work / f"product{number}")
        for key in find_choices(one, run.job.target)[:1]:
            tiles = rank_tiles(key, run.job.target)[:MOST_TILES]
            if key not in seen and len(tiles) > 1:
                seen.add(key)
                yield Kernel(key, one, tuple(tiles))


def _tune_kernel(bench: _Bench, kernel: Kernel, work: Path) -> Outcome:
    measured = measured_on(bench.board.kind)
    with _installed(bench, kernel, work) as made:
        launch, tiles = _launcher(bench, kernel, made, work), tuple(made)
        if measured == "time":
            fastest = min(launch(tiles[0], _PROBE))
            count, passes = max(_FEWEST, min(_MOST, _LAUNCH_NS // max(fastest, 1))), _PASSES
            samples = measure_tiles(launch, tiles, count=count, passes=passes)
        else:
            count, passes = _COUNTED, 1
            samples = {tile: [min(launch(tile, count))] for tile in tiles}
        confirm_best(launch, samples, tiles[0], count=count, passes=passes)
    tile, gain = choose_best(samples, kernel.tiles[0])
    tuned = TunedTile(
        kind=kernel.key.kind,
        rows=kernel.key.rows,
        columns=kernel.key.columns,
        depth=kernel.key.depth,
        dtype=kernel.key.dtype,
        tile=tile,
        gain=round(gain, 4),
        measured=measured,
        date=datetime.datetime.now(datetime.UTC).date(),
        edgeopt=edgeopt.__version__,
    )
    return Outcome(tuned, {tile: min(taken) for tile, taken in samples.items()})


def measure_tiles(
    launch: Launch, tiles: Sequence[Tile], *, count: int, passes: int
) -> dict[Tile, list[int]]:
    """Launch all tiles in turn, there and back, and return the fastest sample of each launch.

    There and back, so that a machine that slows down or speeds up does so for all alike.
    """
    samples: dict[Tile, list[int]] = {tile: [] for tile in tiles}
    for _ in range(passes):
        for tile in (*tiles, *reversed(tiles)):
            samples[tile].append(min(launch(tile, count)))
    return samples


def confirm_best(
    launch: Launch, samples: dict[Tile, list[int]], default: Tile, *, count: int, passes: int
) -> None:
    """Launch the winner and the default as often again, and add what they took."""
    best, _ = choose_best(samples, default)
    if best is not None:
        again = measure_tiles(launch, (default, best), count=count, passes=passes)
        for tile, taken in again.items():
            samples[tile] += taken


def choose_best(samples: dict[Tile, list[int]], default: Tile) -> tuple[Tile | None, float]:
    """Return the tile that beats the default beyond noise, or None, and its gain.

    The faster half of its launches must each beat all of the default's, as noise only ever adds,
    and the fastest by WORTH. By chance alone twelve launches of each are so ordered once in 146
    times.
    """
    usual = samples[default]

    def gain(tile: Tile) -> float:
        return min(usual) / min(samples[tile]) - 1

    better = [
        tile
        for tile, found in samples.items()
        if tile != default and _middle(found) < min(usual) and gain(tile) > WORTH
    ]
    if not better:
        return None, 0.0
    best = max(better, key=gain)
    return best, gain(best)


def _middle(taken: Sequence[int]) -> int:
    """Return the slowest of the faster half."""
    return sorted(taken)[(len(taken) - 1) // 2]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A tile's code on the board."""

    bundle: Bundle
    release: Release


def _launcher(bench: _Bench, kernel: Kernel, made: Mapping[Tile, _Candidate], work: Path) -> Launch:
    """Return what runs a tile's code; its outputs must be those of onnxruntime each time."""
    from edgeopt.model.graph import read_arithmetic
    from edgeopt.model.oracle import run_samples, seeded_inputs

    feeds = {name: each[None] for name, each in seeded_inputs(kernel.model, 0).items()}
    expected = run_samples(kernel.model, feeds)
    halves = bench.run.job.target.multiplies_halves
    arithmetic = read_arithmetic(kernel.model.path, multiplies_halves=halves)

    def launch(tile: Tile, count: int) -> Sequence[int]:
        done = run_program(
            made[tile].release,
            made[tile].bundle,
            bench.board,
            feeds=feeds,
            warmup=1,
            iterations=count,
            threads=bench.run.job.threads,
            directory=work,
        )
        parity = make_parity(list(done.outputs), expected, arithmetic=arithmetic)
        check_parity(parity, parity.limit)
        return done.report.samples_ns

    return launch


@contextmanager
def _installed(bench: _Bench, kernel: Kernel, work: Path) -> Iterator[dict[Tile, _Candidate]]:
    """Put the code of every tile on the board for as long as it is measured."""
    from edgeopt.compile import compile_model
    from edgeopt.deploy import discard_release, stage_bundle

    job = bench.run.job
    made: dict[Tile, _Candidate] = {}
    with ExitStack() as stack:
        for tile in kernel.tiles:
            bundle = compile_model(
                kernel.model,
                job.target,
                directory=work / f"{tile[0]}x{tile[1]}",
                cache=bench.run.store.root,
                threads=job.threads,
                allow_unscheduled=True,
                tiles={kernel.key: tile},
            )
            if any(bundle.digest == each.bundle.digest for each in made.values()):
                continue
            release = stage_bundle(bundle, bench.board, facts=bench.facts, app=job.app, root=ROOT)
            stack.callback(discard_release, release, bench.board)
            made[tile] = _Candidate(bundle, release)
        yield made
