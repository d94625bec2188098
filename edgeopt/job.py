"""What a run is asked to do, and what it has done so far."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from edgeopt.artifact import (
    MIXED,
    Bundle,
    Fact,
    Footprint,
    Measurement,
    Method,
    Model,
    Parity,
    Plan,
    Release,
    Report,
    StageRecord,
    Vocabulary,
)
from edgeopt.board import Kind
from edgeopt.board.owner import Owner
from edgeopt.cut import Pruning
from edgeopt.deploy.signature import Signed, Signer, sign_release
from edgeopt.effort import STANDARD, Effort
from edgeopt.profile import Profile
from edgeopt.store import Result, Store, digest_file
from edgeopt.target import Target
from edgeopt.task import Task
from edgeopt.tiles import Tile, TileKey

Tell = Callable[[StageRecord], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything a run depends on. The profile's budget has the command line's limits in it."""

    app: str
    #: Folder that the model is relative to.
    project: Path
    model: str
    shapes: Mapping[str, tuple[int, ...]]
    #: Inputs that become constants, by name.
    values: Mapping[str, float]
    target: Target
    profile: Profile
    #: With absolute paths.
    task: Task | None
    #: Of the board that the job is for; it decides how many samples run there.
    kind: Kind
    #: How much the search for a plan may cost.
    effort: Effort = STANDARD
    #: Use nothing from the cache.
    fresh: bool = False
    #: Compile what has no fast kernel all the same, with a warning.
    allow_unscheduled: bool = False
    #: Tiles that were measured on such a board to be better than the default.
    tiles: Mapping[TileKey, Tile] = field(default_factory=dict)
    #: What trimming made of the vocabulary; the task's tokenizer is then the shorter one.
    vocabulary: Vocabulary | None = None
    #: The outputs that are kept; none named: all.
    outputs: tuple[str, ...] = ()
    #: What was cut out of the model, when that was asked for.
    pruning: Pruning | None = None
    #: Time that the last deploy measured for each predicted; None: times are not predicted.
    pace: float | None = None
    #: File of the times that were measured on such boards; None: none are kept.
    times: Path | None = None
    #: Accuracy that drops are measured from; None: that of the model that is fitted.
    baseline: float | None = None
    #: Who signs the release; None: nobody does.
    signer: Signer | None = None
    #: Whether a signed release may be older than one that was current.
    downgrade: bool = False
    #: Whether the least memory that it runs in is found, by limits that the kernel enforces.
    confine: bool = False

    def sign(self, digest: str) -> Signed | None:
        """Sign a release of the application; None where the job has no signer."""
        if self.signer is None:
            return None
        return sign_release(
            self.signer,
            app=self.app,
            digest=digest,
            target=self.target.name,
            downgrade=self.downgrade,
        )

    @property
    def sample_count(self) -> int:
        """How many samples run on the board; at least three, for one may hide what others show."""
        bench = self.profile.bench
        return max(3, bench.emulated_samples if self.kind == "emulated" else bench.samples)

    @property
    def warmup(self) -> int:
        """Untimed inferences before the timed ones."""
        bench = self.profile.bench
        return bench.emulated_warmup if self.kind == "emulated" else bench.warmup

    @property
    def iterations(self) -> int:
        """Timed inferences: every sample at least once."""
        bench = self.profile.bench
        asked = bench.emulated_iterations if self.kind == "emulated" else bench.iterations
        return max(asked, self.sample_count)

    @property
    def launches(self) -> int:
        """Launches of the device program at most; instructions repeat, so that one is enough."""
        return 1 if self.kind == "emulated" else self.profile.bench.launches

    @property
    def threads(self) -> int:
        """Threads of the device program; instructions are counted on one core."""
        if self.kind == "emulated":
            return 1
        return self.profile.bench.threads or self.target.cluster[0].count


@dataclass(slots=True)
class Run:
    """One run of the flow: its job, its cache, and the story so far."""

    job: Job
    store: Store
    tell: Tell
    #: Told the name of a stage that begins, for whoever waits.
    begin: Callable[[str], None] = lambda _name: None
    #: Told who holds the board, when that is waited for.
    wait: Callable[[Owner], None] = lambda _owner: None
    #: Told the name of what is under way, and the share of it that is done.
    advance: Callable[[str, float], None] = lambda _name, _share: None
    records: list[StageRecord] = field(default_factory=list)

    def stage(
        self,
        name: str,
        inputs: object,
        result: type[Result],
        work: Callable[[Path], Result],
        *,
        detail: str = "",
    ) -> Result:
        """Find a stage's result or make it, and tell which."""
        self.begin(name)
        staged = self.store.stage(name, inputs, result, work, fresh=self.job.fresh)
        self.note(name, detail, cached=staged.cached, seconds=staged.seconds)
        return staged.value

    def note(self, name: str, detail: str = "", *, cached: bool, seconds: float) -> None:
        """Add one line to the story."""
        record = StageRecord(name=name, detail=detail, cached=cached, seconds=seconds)
        self.records.append(record)
        self.tell(record)


def digest_task(job: Job) -> object:
    """Return what a key says of the job's task: its settings, and the digests of its files."""
    if job.task is None:
        return None
    files = {name: digest_file(value) for name, value in job.task if isinstance(value, Path)}
    return [job.task.model_dump(mode="json"), files]


def plan_name(model: Model) -> str:
    """Return the plan that made a model: float32 when none did."""
    known = (*get_args(Method), MIXED)
    return model.provenance[-1] if model.provenance[-1] in known else "float32"


def plan_title(plan: Plan) -> str:
    """Return what a plan is called where others are listed beside it."""
    return plan.title


class Correction(Fact):
    """What measurements say of predictions: bytes that they were short of, and how slow it is."""

    memory: int = 0
    flash: int = 0
    #: Time measured for each predicted; None before anything was measured.
    pace: float | None = None

    def after(self, predicted: Footprint, found: Footprint) -> "Correction":
        """Return this with what a footprint, predicted with it, was still short of."""
        return Correction(
            memory=self.memory + max(found.peak - predicted.peak, 0),
            flash=self.flash + max(found.flash - predicted.flash, 0),
            pace=self.pace,
        )


class Program(Fact):
    """The device program of a machine, before any model is linked to it."""

    #: Bytes of its file.
    size: int


class Samples(Fact):
    """The inputs that run on the board and on the host, in one .npz file."""

    path: Path
    sha256: str
    count: int
    #: Whether "labels" [count] are in the file, beside "in.<name>" [count, *shape].
    labelled: bool


class Trial(Fact):
    """What a release did on the board before anyone relied on it."""

    measurement: Measurement
    parity: Parity


class Deployed(Fact):
    """What a deploy tried on the board; the release is there if the report says it was kept."""

    report: Report
    release: Release
    bundle: Bundle
    #: What was compiled.
    model: Model
    samples: Samples
