"""What flows between the stages: frozen facts that round-trip through JSON."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from edgeopt.board import Kind
from edgeopt.choice import MIXED as MIXED
from edgeopt.choice import Choice as Choice
from edgeopt.choice import Method as Method
from edgeopt.choice import Recipe as Recipe
from edgeopt.cut import Cut, Pruning
from edgeopt.fact import Fact as Fact  # those of every other module build on it too
from edgeopt.surroundings import Around, Conditions, Confinement, Energy, Memory, Process

#: What a model computes with, which says how far two correct runs may be apart.
Arithmetic = Literal["float32", "float16", "integer"]


class TensorSpec(Fact):
    """Name, ONNX element type as numpy spells it ("float32", "int64") and fixed shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Model(Fact):
    """One ONNX graph in one file, at any stage of the flow."""

    path: Path
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    #: Number of trained values (elements of initializers), not bytes.
    parameters: int
    #: Every step that led here, oldest first: "questions.onnx", "normalized", "int8-weights".
    provenance: tuple[str, ...]


class Vocabulary(Fact):
    """A task's vocabulary without the pieces that its texts do not need."""

    #: The tokenizer.json that the application must use from now on, its digest and its bytes.
    tokenizer: Path
    sha256: str
    size: int
    #: Number of pieces.
    before: int
    after: int

    def __str__(self) -> str:
        return f"vocabulary {self.before} -> {self.after} pieces"


class Range(Fact):
    """The calibrated range of one activation tensor."""

    tensor: str
    low: float
    high: float


class Plan(Fact):
    """What the fitter decided; replaying it on the same model gives the same bytes."""

    name: str
    choices: tuple[Choice, ...]
    #: Applied before the choices, which are about what is left.
    cuts: tuple[Cut, ...] = ()
    #: Only for int8-static: replaying needs no calibration data.
    ranges: tuple[Range, ...] = ()
    #: Whether matrices that are reconstructed are fitted one after the other, each to what it is
    #: given once those before it are rounded.
    in_turn: bool = False
    recipe: Recipe = Recipe()

    @property
    def title(self) -> str:
        """What it is called where others are listed beside it."""
        return f"{self.name}, pruned" if self.cuts else self.name


class Entry(Fact):
    """What was done to one weight, and why not less."""

    choice: Choice
    #: Bytes stored for it as it came and as it is now.
    before: int
    after: int
    #: How far the outputs move when this is the only change.
    harm: float
    #: What the next larger form would cost in bytes and save in harm; None: there is none.
    more_bytes: int | None = None
    less_harm: float | None = None


class Line(Fact):
    """One weight in the ledger of a plan: what was done to it, what that costs, and why."""

    weight: str
    #: In words: "int4-blocks of 32, rank 64".
    form: str
    #: Bytes in the weights file.
    before: int
    after: int
    #: Predicted ns of the nodes that read it, by the last measured pace where there is one.
    predicted_before: float
    predicted_after: float
    #: Measured ns; None: boards measure whole inferences, not layers.
    measured: float | None = None
    #: How far the outputs move when this is the only change; None where it was not measured.
    harm: float | None = None
    reason: str


class Footprint(Fact):
    """The bytes that a bundle needs on the board.

    Anonymous memory cannot be evicted; file-backed memory (code, weights) can.
    """

    #: Everything that is stored: program, code, weights, manifest.
    flash: int
    #: The weights file, as stored.
    weights: int
    #: Weights that are resident while running: embedding tables count their touched pages.
    weights_resident: int
    #: Planned activations, inputs, outputs and workspace of kernels included (anonymous).
    arena: int
    #: The device program, its libraries, stack and heap before any model (VmHWM).
    runtime: int

    @property
    def peak(self) -> int:
        """Predicted peak resident memory (VmHWM), in bytes."""
        return self.weights_resident + self.arena + self.runtime


class BundleFile(Fact):
    """One file of a bundle, by its name in the bundle's folder."""

    name: str
    sha256: str
    size: int
    executable: bool = False


class Unscheduled(Fact):
    """A function that no kernel rule took and why, and its share of the model's FLOPs."""

    function: str
    flops_share: float


class Runnable(Fact):
    """What must be known of a compiled model to run it, and what it will occupy."""

    target: str
    files: tuple[BundleFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    footprint: Footprint
    #: /proc/cpuinfo features that the code needs ("asimd", "asimddp", "avx2").
    features: tuple[str, ...]
    #: ELF machine ("aarch64", "arm", "x86_64") and lowest glibc ("2.17"), or "" when static.
    machine: str
    glibc: str
    #: How many threads it is meant to run with, and on which cores ("cortex-a72").
    threads: int = Field(default=1, ge=1)
    core: str = ""


class Bundle(Runnable):
    """A compiled model: the files that go to the board."""

    path: Path
    #: sha256 of the canonical manifest: the release's identity.
    digest: str
    unscheduled: tuple[Unscheduled, ...] = ()


class Release(Fact):
    """A bundle installed on a board under its digest."""

    board: str
    kind: Kind
    app: str
    digest: str
    #: Absolute POSIX path on the board.
    path: str
    #: Digest of the release that was current before, or "".
    previous: str = ""
    #: Bytes sent over the wire by this deploy; objects that were there already are not sent.
    sent: int = 0


class Measurement(Fact):
    """What was seen on the board while the device program ran, in one launch or several."""

    kind: Kind
    board: str
    boot_id: str
    digest: str
    threads: int
    #: Raw duration of each timed inference, in ns of CLOCK_MONOTONIC_RAW.
    #: On an emulated board, instructions that the program executes itself, without the kernel's.
    samples_ns: tuple[int, ...]
    #: How many of them each launch of the program gave; one launch where it is empty.
    launches: tuple[int, ...] = ()
    #: From the process's start to its first line; 0 where the program does not tell.
    start_ns: int = 0
    load_ns: int
    first_ns: int
    #: The untimed inferences, the first of them included.
    warm_ns: tuple[int, ...] = ()
    #: How far the clock of the day went beyond the raw one during the timed inferences.
    drift_ns: int = 0
    memory: Memory
    before: Conditions
    after: Conditions
    around: Around = Around()
    process: Process = Process()
    #: None where it was not asked for.
    confined: Confinement | None = None
    #: The board's power sensor, "" where it has none; what it showed, None where it did not.
    sensor: str = ""
    energy: Energy | None = None
    #: Why launches were repeated instead of counted.
    set_aside: tuple[str, ...] = ()
    #: Why the figures must not be compared with others; empty when they may.
    invalid: tuple[str, ...] = ()


class Parity(Fact):
    """Outputs on the board against onnxruntime's on the host, on the same inputs."""

    samples: int
    #: max |board - host| over all outputs, and relative to max |host| of that output.
    max_abs: float
    max_rel: float
    #: What rounding alone may make of max_rel, by the model's arithmetic.
    limit: float = 1e-4
    #: Where the largest relative difference is, in words: output, sample, index, both values.
    worst: str = ""
    #: The sample in which it is.
    worst_sample: int = 0
    #: Share of samples whose argmax of the first output agrees; None without a class axis.
    agreement: float | None = None
    #: Metric of the deployed model on the labelled samples run on the board.
    metric: str | None = None
    metric_samples: int = 0
    metric_board: float | None = None
    metric_host: float | None = None


class Check(Fact):
    """One limit compared with one figure. Reaching the limit exactly is within it."""

    name: str
    unit: Literal["bytes", "ms", "instructions", "fraction", "ratio"]
    predicted: float | None
    measured: float | None
    limit: float | None
    kind: Kind | None = None

    @property
    def met(self) -> bool | None:
        """Whether the best figure at hand is within the limit; None when there is no limit."""
        figure = self.measured if self.measured is not None else self.predicted
        if self.limit is None or figure is None:
            return None
        return figure <= self.limit


class StageRecord(Fact):
    """One stage of a run, for the story and the report."""

    name: str
    detail: str
    cached: bool
    seconds: float


class Row(Fact):
    """One plan as it was compiled and, when it was sent, as it was seen on the board."""

    plan: str
    #: reference: what the model was before; chosen: what the fitter decided.
    role: Literal["reference", "chosen"]
    footprint: Footprint
    #: Metric on the host over all labelled samples, when the task has them.
    metric_host: float | None = None
    measurement: Measurement | None = None
    parity: Parity | None = None
    #: Why it was not sent to the board, when it was not.
    note: str = ""


class Tried(Fact):
    """One plan that the fitter looked at."""

    plan: str
    flash: int
    peak: int
    metric: float | None
    drop: float | None
    #: Predicted, in ms, once the board's pace was measured.
    latency: float | None = None
    #: The limits it breaks, with figures; empty when it is feasible.
    broken: tuple[str, ...] = ()


class Report(Fact):
    """All of a run: what was asked, decided, sent, seen and concluded."""

    schema_version: Literal[1] = 1
    app: str
    target: str
    profile: str
    board: str
    kind: Kind
    #: What the stand-in does differently from the device; empty on a real board.
    caveat: str = ""
    #: Digest of the release that is current now, and whether this run made it so.
    digest: str
    kept: bool
    #: Number of the lease under which the board was used: later users have higher ones.
    fence: int = 0
    #: Time measured for each predicted; later plans start from it. None where none was measured.
    pace: float | None = None
    checks: tuple[Check, ...]
    rows: tuple[Row, ...]
    tried: tuple[Tried, ...]
    #: When the vocabulary was trimmed: what the application's tokenizer must be.
    vocabulary: Vocabulary | None = None
    pruning: Pruning | None = None
    #: What was done to each weight of the chosen plan, and why.
    ledger: tuple[Line, ...] = ()
    #: What is judged where labels are absent, in a sentence; empty where accuracy is.
    judged_by: str = ""
    #: Figures and the commands that compute them again.
    commands: tuple[tuple[str, str], ...] = ()
    stages: tuple[StageRecord, ...]
    warnings: tuple[str, ...] = ()
    #: Exit code of the first gate that failed; 0 when all held.
    exit_code: int = 0
    #: What failed, in one sentence; empty when nothing did.
    failure: str = ""
    next_command: str = ""
    created: str
