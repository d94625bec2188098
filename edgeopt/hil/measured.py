"""What a test sees of a model on its board, in figures that it can compare with its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import pytest

from edgeopt.artifact import Bundle, Measurement, Parity, Release, Report
from edgeopt.board.facts import BoardFacts
from edgeopt.compare import COUNTED_LAUNCHES
from edgeopt.errors import MeasurementNoisy
from edgeopt.hil.baseline import Baselines
from edgeopt.job import Samples
from edgeopt.measure import Statistics, summarize_samples
from edgeopt.units import format_bytes


@final
class Size(int):
    """Bytes that a failed assertion prints with their unit."""

    def __repr__(self) -> str:
        return f"{format_bytes(self)} ({int(self)} bytes)"


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model that was deployed to the board of this session, for its tests only."""

    report: Report
    release: Release
    bundle: Bundle
    samples: Samples
    #: Untimed and timed inferences of a launch, and its threads.
    warmup: int
    iterations: int
    threads: int
    parity: Parity
    first: Measurement
    #: Measures it in so many more launches of its program.
    launch: Callable[[int], Sequence[Measurement]]

    @property
    def digest(self) -> str:
        """The release's identity."""
        return self.bundle.digest


@dataclass(frozen=True)
class Measured:
    """One deployment's figures, for one test."""

    deployment: Deployment
    target: str
    facts: BoardFacts
    baselines: Baselines
    #: How many launches a comparison uses, where time is measured.
    launch_count: int
    #: Told a name and a value for the test's report.
    note: Callable[[str, str], None]

    @property
    def kind(self) -> str:
        """Where the figures come from: native, emulated or board."""
        return self.deployment.first.kind

    @property
    def fence(self) -> int:
        """The number of the lease that it was measured under: it only grows on a board."""
        return self.deployment.report.fence

    @property
    def samples(self) -> tuple[int, ...]:
        """Every timed inference of the first launch, in ns, or instructions when emulated."""
        return self.deployment.first.samples_ns

    @property
    def peak(self) -> Size:
        """Peak resident memory of the device program, in bytes."""
        return Size(self.deployment.first.memory.peak)

    @property
    def flash(self) -> Size:
        """Bytes stored on the board."""
        return Size(self.deployment.bundle.footprint.flash)

    @property
    def parity(self) -> float:
        """Largest difference from onnxruntime's outputs, relative to the largest of them."""
        return self.deployment.parity.max_rel

    @property
    def agreement(self) -> float | None:
        """Share of samples whose class is onnxruntime's; None without classes."""
        return self.deployment.parity.agreement

    @property
    def p50(self) -> float:
        """Median latency in ms; an emulated board has none, and the test is skipped."""
        return self._timed().p50 / 1e6

    @property
    def p95(self) -> float:
        """95th percentile of the latency in ms; an emulated board has none: a skip."""
        return self._timed().p95 / 1e6

    @property
    def p99(self) -> float:
        """What the 99th percentile of the latency is at most, in ms, with 95 % confidence.

        An error, and no guess, below 299 samples; an emulated board has none: a skip.
        """
        found = self._timed()
        if found.p99_bound is None:
            raise MeasurementNoisy(
                f"{found.count} samples support no 99th percentile",
                why="with fewer than 299 not even the largest bounds it (order statistics)",
                fix="measure more: iterations under [bench] of the profile",
            )
        return found.p99_bound / 1e6

    @property
    def instructions(self) -> float:
        """Median of the instructions of an inference; only emulated boards count: else a skip."""
        if self.kind != "emulated":
            pytest.skip("instructions are counted on emulated boards only")
        return summarize_samples(self.samples).p50

    @cached_property
    def launches(self) -> tuple[Measurement, ...]:
        """Launches for a comparison: the first one, and as many more as it takes."""
        count = COUNTED_LAUNCHES if self.kind == "emulated" else self.launch_count
        return (self.deployment.first, *self.deployment.launch(count - 1))

    def _timed(self) -> Statistics:
        if self.kind == "emulated":
            pytest.skip("an emulated board counts instructions, which is not a latency")
        return summarize_samples(self.samples)
