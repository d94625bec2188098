"""Figures of a benchmark as JSON: each carries the digests of its model and of edgeopt's source."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edgeopt.store import write_atomically

SCHEMA = 1
#: Time, or instructions that a program executes itself, those of the kernel left out.
Unit = Literal["ms", "M user instructions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model on one target by one runtime."""

    model: str
    #: sha256 of the ONNX file.
    digest: str
    target: str
    threads: int
    runtime: str
    #: Digest of the compiled bundle or of edgeopt's source; the version of another runtime.
    code: str
    unit: Unit
    median: float | None = None
    minimum: float | None = None
    #: Peak resident memory in bytes.
    peak: int | None = None
    #: Weights and arena in bytes, as the bundle states them.
    expected: int | None = None
    #: Largest difference from onnxruntime on this machine, relative to the output's largest value.
    difference: float | None = None
    error: str = ""

    @property
    def place(self) -> tuple[str, str, int]:
        """What may be compared: the same model, target and threads."""
        return self.model, self.target, self.threads

    @property
    def kind(self) -> str:
        """Arithmetic by the variant of the suite: float32, float16 or int8."""
        _, _, variant = self.model.partition(".")
        return {"": "float32", "f16": "float16"}.get(variant, "int8")

    @property
    def family(self) -> tuple[str, str, int]:
        """What is one model in several variants, on one target."""
        return self.model.partition(".")[0], self.target, self.threads


def find_row(rows: Iterable[Row], like: Row) -> Row | None:
    """Find what was measured of the same model file, code, target and unit."""
    for each in rows:
        same = each.place == like.place and each.digest == like.digest and each.unit == like.unit
        if same and (each.runtime, each.code) == (like.runtime, like.code) and each.median:
            return each
    return None


def ratios_by_kind(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """Divide by onnxruntime's figure, per target and kind of arithmetic, by model.

    int8 is divided by the best of onnxruntime's int8 variants of the same model.
    """
    kept = [each for each in rows if each.median]
    peers = [each for each in kept if each.runtime == "onnxruntime"]
    best: dict[tuple[object, ...], float] = {}
    for each in peers:
        key = _compared(each)
        best[key] = min(best.get(key, math.inf), each.median or math.inf)
    ratios: dict[tuple[str, str], dict[str, float]] = {}
    for each in kept:
        if each.runtime == "edgeopt" and _compared(each) in best:
            ratio = (each.median or math.nan) / best[_compared(each)]
            ratios.setdefault((each.target, each.kind), {})[each.model] = ratio
    return ratios


def _compared(row: Row) -> tuple[object, ...]:
    return (*row.family, row.kind) if row.kind == "int8" else row.place


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a file; one of the same place and runtime is replaced."""
    kept = {(each.place, each.runtime): each for each in read_rows(path) if path.exists()}
    kept |= {(each.place, each.runtime): each for each in rows}
    document = {"schema_version": SCHEMA, "rows": [asdict(each) for each in kept.values()]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())


def read_rows(path: Path) -> list[Row]:
    """Read a file of rows; none where there is no file."""
    if not path.exists():
        return []
    document = json.loads(path.read_text())
    if document.get("schema_version") != SCHEMA:
        raise ValueError(f"{path}: schema {document.get('schema_version')}, not {SCHEMA}")
    return [Row(**each) for each in document["rows"]]


def geometric_mean(ratios: Iterable[float]) -> float:
    """Return the geometric mean; of nothing it is NaN.

    >>> round(geometric_mean([0.5, 2.0]), 6)
    1.0
    """
    logs = [math.log(each) for each in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
