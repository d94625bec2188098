"""Facts of a run that never happened, for tests of what is made of them."""

from edgeopt.artifact import (
    Bundle,
    Check,
    Footprint,
    Measurement,
    Parity,
    Report,
    Row,
    StageRecord,
    Tried,
    Unscheduled,
)
from edgeopt.board import Kind
from edgeopt.surroundings import Conditions, Memory

FOOTPRINT = Footprint(
    flash=48_000_000,
    weights=45_000_000,
    weights_resident=22_000_000,
    arena=900_000,
    runtime=5_000_000,
)


def measurement(*samples: int, kind: Kind = "emulated", peak: int = 27_500_000) -> Measurement:
    return Measurement(
        kind=kind,
        board="emulated rpi4",
        boot_id="b",
        digest="d" * 64,
        threads=1,
        samples_ns=samples or (400_000_000, 401_000_000),
        load_ns=1,
        first_ns=1,
        memory=Memory(
            peak=peak,
            anonymous=3_000_000,
            file_backed=24_000_000,
            start=1,
            loaded=2,
            minor_faults=3,
            major_faults=4,
        ),
        before=Conditions(),
        after=Conditions(),
    )


def parity(max_rel: float = 1e-6, samples: int = 8, board: float = 0.875) -> Parity:
    return Parity(
        samples=samples,
        max_abs=1e-6,
        max_rel=max_rel,
        agreement=1.0,
        worst="output 'scores'",
        metric="accuracy",
        metric_samples=samples,
        metric_board=board,
        metric_host=0.875,
    )


def bundle(*unscheduled: Unscheduled) -> Bundle:
    return Bundle.model_validate(
        {
            "path": "/nowhere",
            "digest": "d" * 64,
            "target": "rpi4",
            "files": [],
            "inputs": [],
            "outputs": [],
            "footprint": FOOTPRINT.model_dump(),
            "features": ["asimd"],
            "machine": "aarch64",
            "glibc": "2.17",
            "unscheduled": [each.model_dump() for each in unscheduled],
        }
    )


def check(name: str, measured: float | None, limit: float | None, unit: str = "bytes") -> Check:
    return Check.model_validate(
        {"name": name, "unit": unit, "predicted": 1.0, "measured": measured, "limit": limit}
    )


TRIED = Tried(plan="float16", flash=47_000_000, peak=27_000_000, metric=0.849, drop=0.001)


def report(*, kept: bool = True, app: str = "questions") -> Report:
    row = Row(
        plan="float16",
        role="chosen",
        footprint=FOOTPRINT,
        metric_host=0.849,
        measurement=measurement(),
        parity=parity(),
    )
    return Report(
        app=app,
        target="rpi4",
        profile="balanced",
        board="emulated rpi4",
        kind="emulated",
        caveat="has AES instructions that the board lacks",
        digest="d" * 64,
        kept=kept,
        checks=(
            check("flash", 48e6, 64e6),
            check("peak memory", 27.5e6, 20e6),
            check("instructions", 4e8, None, "instructions"),
        ),
        rows=(row,),
        tried=(TRIED, TRIED.model_copy(update={"plan": "float32", "broken": ("flash",)})),
        stages=(StageRecord(name="load", detail="", cached=True, seconds=0.1),),
        failure="" if kept else "the budget is not met: peak memory is 27.5 MB",
        exit_code=0 if kept else 3,
        next_command="edgeopt status --target rpi4",
        created="2026-01-01T00:00:00+00:00",
    )
