"""Let two models, or two plans of one, take turns on a board, and say which one is faster."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeopt.artifact import Bundle, Fact
from edgeopt.board import Board, Kind
from edgeopt.board.facts import BoardFacts, read_facts
from edgeopt.board.lease import Lease, hold
from edgeopt.compare import Comparison
from edgeopt.deploy import remove_application, stage_bundle
from edgeopt.errors import (
    BoardUnreachable,
    ConfigError,
    EdgeoptError,
    LeaseLost,
    MeasurementNoisy,
)
from edgeopt.interleave import Schedule, Side, take_turns
from edgeopt.job import Job, Run
from edgeopt.pipeline import LEASE_SECONDS, plan
from edgeopt.scratch import scratch
from edgeopt.trial import ROOT, Arrays, read_samples


class Contest(Fact):
    """Two contenders, and how the second one compares with the first."""

    board: str
    kind: Kind
    #: What the user calls them, and what was compiled of them.
    base: str
    other: str
    base_digest: str
    other_digest: str
    #: The first one against itself, just before; None where that was not asked for.
    self_test: Comparison | None = None
    comparison: Comparison
    #: Number of the lease under which the board was used.
    fence: int


@dataclass(frozen=True, slots=True)
class Rival:
    """One of the two, before it is compiled."""

    label: str
    run: Run
    #: What was compiled before; None: what the run makes.
    bundle: Bundle | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How the two are compared."""

    #: Of A B B A; an emulated board counts, and needs none.
    blocks: int
    #: Differences up to this share of the time do not matter.
    tolerance: float = 0.0
    #: Whether the first one is compared with itself before.
    self_test: bool = False
    #: Seconds that a board in use is waited for.
    wait: float = 0.0


@dataclass(frozen=True, slots=True)
class _Ring:
    """The board of a contest, ours for now."""

    lease: Lease
    facts: BoardFacts
    #: Its application there, beside what the board is used for.
    app: str
    job: Job
    terms: Terms
    directory: Path

    def enter(self, bundle: Bundle, feeds: Arrays) -> Side:
        release = stage_bundle(bundle, self.lease.board, facts=self.facts, app=self.app, root=ROOT)
        return Side(release, bundle, feeds)

    def turns(self, base: Side, other: Side) -> Comparison:
        schedule = Schedule(
            warmup=self.job.warmup,
            iterations=self.job.iterations,
            threads=self.job.threads,
            blocks=self.terms.blocks,
            between=lambda: self.lease.renew(LEASE_SECONDS),
        )
        return take_turns(
            self.lease.board,
            base,
            other,
            facts=self.facts,
            schedule=schedule,
            tolerance=self.terms.tolerance,
            directory=self.directory,
        )


def compare_rivals(
    base: Rival, other: Rival, connect: Callable[[], Board], *, terms: Terms
) -> Contest:
    """Compile both, launch them as A B B A on one lease, and leave nothing of them on the board.

    With a self-test, a board that calls the first one different from itself is MeasurementNoisy.
    """
    return _compete(base, other, [_make(each) for each in (base, other)], connect, terms)


def compare_on_boards(
    base: Rival,
    other: Rival,
    boards: Mapping[str, Callable[[], Board]],
    *,
    terms: Terms,
    parallel: int,
) -> dict[str, Contest | EdgeoptError]:
    """Compile both once and compare them on several boards side by side, each by itself.

    What keeps one board from a figure keeps no other one from its own.
    """
    made = [_make(each) for each in (base, other)]

    def compete(connect: Callable[[], Board]) -> Contest | EdgeoptError:
        try:
            return _compete(base, other, made, connect, terms)
        except EdgeoptError as error:
            return error

    with ThreadPoolExecutor(parallel) as pool:
        return dict(zip(boards, pool.map(compete, boards.values()), strict=True))


def _compete(
    base: Rival,
    other: Rival,
    made: Sequence[tuple[Bundle, Arrays]],
    connect: Callable[[], Board],
    terms: Terms,
) -> Contest:
    job = base.run.job
    board = connect()
    try:
        holding = hold(
            board,
            ROOT,
            owner=f"edgeopt bench {job.app}",
            seconds=LEASE_SECONDS,
            wait=terms.wait,
            waiting=base.run.wait,
        )
        with holding as lease, scratch() as folder:
            app = f"bench-{job.app}"[:64]
            ring = _Ring(lease, read_facts(lease.board), app, job, terms, folder)
            try:
                sides = [ring.enter(*each) for each in made]
                alone = ring.turns(sides[0], sides[0]) if terms.self_test else None
                _require_same(alone, board.name)
                found = ring.turns(sides[0], sides[1])
            finally:
                # Nothing is left to be removed on a board that is gone, or another's by now.
                with suppress(BoardUnreachable, LeaseLost):
                    remove_application(lease.board, app, root=ROOT)
    finally:
        board.close()
    return Contest(
        board=board.name,
        kind=board.kind,
        base=base.label,
        other=other.label,
        base_digest=made[0][0].digest,
        other_digest=made[1][0].digest,
        self_test=alone,
        comparison=found,
        fence=lease.fence,
    )


def _make(rival: Rival) -> tuple[Bundle, Arrays]:
    """Return a contender's bundle, and the inputs that it takes."""
    built = plan(rival.run)
    bundle = rival.bundle or built.bundle
    if bundle.inputs != built.bundle.inputs:
        raise ConfigError(
            f"{rival.label} takes other inputs than this project's model",
            why=f"{bundle.inputs} instead of {built.bundle.inputs}",
            fix="run it in the project that it was compiled for",
        )
    return bundle, read_samples(built.samples)[0]


def _require_same(found: Comparison | None, board: str) -> None:
    if found is not None and found.verdict != "inconclusive":
        raise MeasurementNoisy(
            f"{board} calls a model different from itself",
            why=str(found),
            fix="stop other programs there, let it cool, or take more --blocks",
        )
