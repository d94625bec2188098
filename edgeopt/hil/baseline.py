"""Figures of an earlier session, stored in the project, and compared only with their like."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ValidationError

import edgeopt
from edgeopt.artifact import Fact
from edgeopt.board import Kind
from edgeopt.compare import Comparison, compare_counts, compare_launches
from edgeopt.deploy.place import check_name
from edgeopt.errors import ConfigError, MeasurementNoisy
from edgeopt.store import write_atomically

if TYPE_CHECKING:
    from edgeopt.hil.measured import Measured

#: Slower by up to this share is what sessions differ by anyway.
TOLERANCE = 0.03
#: A file larger than this is no baseline.
_LARGEST = 16_000_000


class Setting(Fact):
    """What must be the same for two sessions to be comparable."""

    target: str
    kind: Kind
    board: str
    #: What the board calls itself, and the parts of its processors.
    device: str
    processors: tuple[str, ...]
    ram: int
    governors: tuple[str, ...]
    threads: int
    warmup: int
    iterations: int


class Baseline(Fact):
    """One stored measurement: its launches, and what it was measured with."""

    schema_version: Literal[1] = 1
    setting: Setting
    #: Samples of each launch, in ns, or instructions when emulated.
    launches: tuple[tuple[int, ...], ...]
    peak: int
    #: Recorded, and free to differ: what was compared is often just this.
    digest: str
    #: Of the lease that it was measured under, and of the board's start; baselines of earlier
    #: versions do not tell.
    fence: int | None = None
    boot_id: str = ""
    kernel: str
    temperature_c: float | None
    version: str
    created: str


@dataclass(frozen=True, slots=True)
class Baselines:
    """The folder of a project's baselines; update replaces them instead of comparing."""

    folder: Path
    update: bool = False

    def path(self, target: str, name: str) -> Path:
        """Return where a baseline lies: one file per target and name."""
        return self.folder / check_name(target, "target") / f"{check_name(name, 'baseline')}.json"

    def read(self, target: str, name: str) -> Baseline:
        """Read a baseline; ConfigError when there is none, or it cannot be one."""
        path = self.path(target, name)
        make = "make one: pytest --update-baselines"
        try:
            if path.stat().st_size > _LARGEST:
                raise ConfigError(f"{path} is too large to be a baseline", fix=make)
            return Baseline.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise ConfigError(f"there is no baseline {name!r} for {target}", fix=make) from error
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "document"
            raise ConfigError(
                f"{path} is not a baseline", why=f"{place}: {first['msg']}", fix=make
            ) from error

    def write(self, name: str, baseline: Baseline) -> Path:
        """Store a baseline: the old file or the new one, whole."""
        path = self.path(baseline.setting.target, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (baseline.model_dump_json(indent=1) + "\n").encode())
        return path


def assert_not_slower(
    measurement: "Measured", *, baseline: str, tolerance: float = TOLERANCE
) -> Comparison:
    """Fail when the samples show that it is slower than a baseline by more than the tolerance.

    What they neither show nor rule out is inconclusive, and no failure; the comparison that is
    returned tells, and the summary of the run says so. A baseline of another board, or of
    other settings, is refused.
    """
    now = describe(measurement)
    store = measurement.baselines
    if store.update:
        store.write(baseline, now)
        measurement.note(f"baseline {baseline}", "updated")
        return compare_baselines(now, now, tolerance=tolerance)
    found = compare_baselines(
        store.read(measurement.target, baseline), now, name=baseline, tolerance=tolerance
    )
    measurement.note(f"baseline {baseline}", str(found))
    assert found.verdict != "slower", (
        f"slower than baseline {baseline!r} by more than {tolerance:.1%}: {found}"
    )
    return found


def describe(measurement: "Measured") -> Baseline:
    """Make a baseline of a measurement; MeasurementNoisy when its figures are not to be kept."""
    launches, deployment, facts = (
        measurement.launches,
        measurement.deployment,
        measurement.facts,
    )
    reasons = sorted({reason for each in launches for reason in each.invalid})
    if reasons:
        raise MeasurementNoisy(
            f"the samples of {launches[0].board} cannot be compared with others",
            why="; ".join(reasons),
            fix="let the board cool, stop other programs on it, and run the test again",
        )
    setting = Setting(
        target=measurement.target,
        kind=launches[0].kind,
        board=launches[0].board,
        device=facts.model,
        processors=tuple(each.part for each in facts.processors),
        ram=facts.ram_total,
        governors=facts.governors,
        threads=launches[0].threads,
        warmup=deployment.warmup,
        iterations=deployment.iterations,
    )
    return Baseline(
        setting=setting,
        launches=tuple(each.samples_ns for each in launches),
        peak=max(each.memory.peak for each in launches),
        digest=deployment.digest,
        fence=deployment.report.fence,
        boot_id=launches[0].boot_id,
        kernel=facts.kernel,
        temperature_c=launches[0].before.temperature_c,
        version=edgeopt.__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def compare_baselines(
    base: Baseline, now: Baseline, *, name: str = "", tolerance: float = TOLERANCE
) -> Comparison:
    """Compare two sessions of the same setting; any other is a ConfigError that says what."""
    differing = differences(base.setting, now.setting)
    if differing:
        raise ConfigError(
            f"baseline {name!r} cannot be compared with this run",
            why="; ".join(differing),
            fix="run it under the baseline's settings, or: pytest --update-baselines",
        )
    compare = compare_counts if now.setting.kind == "emulated" else compare_launches
    return compare(base.launches, now.launches, tolerance=tolerance)


def differences(base: Setting, now: Setting) -> Sequence[str]:
    """Return each field that differs, in words."""
    pairs = zip(base, now, strict=True)
    return [
        f"{name} was {_shown(before)}, is {_shown(after)}"
        for (name, before), (_, after) in pairs
        if before != after
    ]


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(sorted(set(map(str, value)))) + f" ({len(value)})" if value else "nothing"
    return str(value)
