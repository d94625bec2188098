"""What every benchmark starts from: the model, made ready; the target; the compiled bundle.

Models are found again under the digests of what they were made from, kernels not among them:
measuring after a change of a kernel does not normalize again.
"""

import argparse
import datetime
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

import edgeopt
from edgeopt.artifact import Bundle, Method, Model
from edgeopt.board.choose import as_emulated
from edgeopt.board.emulator import default_cache
from edgeopt.model import load_model, normalize_model, parse_shape
from edgeopt.store import canonical, digest_file, digest_tree, write_atomically
from edgeopt.target import Target, load_target

#: The name of the target that describes the machine the benchmark runs on.
NATIVE = "native"
#: Samples that calibrate int8-static; drawn, as the benchmark models have no data.
_CALIBRATION = 8
_RECORD = "model.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A model as the command line names it."""

    #: A file, or module:factory below project.
    spec: str
    project: Path = Path()
    shapes: Mapping[str, tuple[int, ...]] | None = None
    values: Mapping[str, float] | None = None
    plan: Method = "float32"

    @property
    def changed(self) -> bool:
        """Whether what runs is not the graph of the file itself."""
        return self.plan != "float32" or bool(self.shapes or self.values) or ":" in self.spec


def read_options(
    parser: argparse.ArgumentParser,
) -> tuple[list[Request], argparse.Namespace]:
    """Add the options that name models and read the command line; at least one model is named."""
    parser.add_argument("model", nargs="*", help="model.onnx or module:factory")
    parser.add_argument("--suite", action="store_true", help="all models of tests.bench.suite")
    parser.add_argument("--only", action="append", default=[], help="of the suite: mlp, lstm")
    parser.add_argument("--project", type=Path, default=Path(), help="folder of the models")
    parser.add_argument("--shape", action="append", default=[], metavar="name=1x32")
    parser.add_argument("--value", action="append", default=[], metavar="name=16000")
    parser.add_argument("--plan", choices=get_args(Method), default="float32")
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    options = parser.parse_args()
    numbers = (each.partition("=") for each in options.value)
    named = Request(
        spec="",
        project=options.project,
        shapes=dict(parse_shape(each) for each in options.shape),
        values={name: float(number) for name, _, number in numbers},
        plan=options.plan,
    )
    requests = [replace(named, spec=each) for each in options.model]
    if options.suite:
        from tests.bench.suite import model_names, suite_folder, write_suite

        folder = write_suite(suite_folder(), only=tuple(options.only))
        names = model_names(tuple(options.only))
        requests += [Request(spec=f"{each}.onnx", project=folder) for each in names]
    if not requests:
        parser.error("name a model, or --suite")
    return requests, options


def prepare_model(request: Request) -> Model:
    """Normalize a model and apply its plan, or find what an earlier call made of the same."""
    source = request.project / request.spec
    origin = digest_file(source) if source.is_file() else digest_tree(request.project)
    package = Path(edgeopt.__file__).parent
    key = {
        "model": [request.spec, origin],
        "shapes": {name: list(shape) for name, shape in (request.shapes or {}).items()},
        "values": dict(request.values or {}),
        "plan": request.plan,
        "source": [digest_tree(package / part) for part in ("model", "compress")],
    }
    with _cached("models", key) as folder:
        if not (folder / _RECORD).exists():
            model = _make_model(request, folder)
            write_atomically(folder / _RECORD, model.model_dump_json().encode())
    return Model.model_validate_json((folder / _RECORD).read_bytes())


def _make_model(request: Request, folder: Path) -> Model:
    from edgeopt.compress import apply_plan, make_plan

    loaded = load_model(request.spec, directory=folder, search=request.project)
    model = normalize_model(
        loaded, shapes=request.shapes or {}, values=request.values, directory=folder
    )
    samples = draw_samples(model, _CALIBRATION) if request.plan == "int8-static" else None
    plan = make_plan(model, request.plan, samples=samples, directory=folder)
    return apply_plan(model, plan, directory=folder)


def draw_samples(model: Model, count: int) -> dict[str, NDArray[Any]]:
    """Draw inputs [count, *shape] by name, one seed each."""
    from edgeopt.model.oracle import seeded_inputs

    each = [seeded_inputs(model, seed) for seed in range(count)]
    return {spec.name: np.stack([one[spec.name] for one in each]) for spec in model.inputs}


def compile_bundle(model: Model, target: Target) -> Bundle:
    """Compile a model, or find the bundle that the same source made of it."""
    from edgeopt.compile import compile_model

    package = Path(edgeopt.__file__).parent
    parts = [digest_tree(package / part) for part in ("compile", "runner")]
    key = {"model": model.sha256, "target": target.model_dump(mode="json"), "source": parts}
    with _cached("bundles", key) as folder:
        if not (folder / _RECORD).exists():
            bundle = compile_model(model, target, directory=folder, cache=default_cache())
            write_atomically(folder / _RECORD, bundle.model_dump_json().encode())
    return Bundle.model_validate_json((folder / _RECORD).read_bytes())


def bench_target(name: str) -> Target:
    """Return a target by name, as its emulated board presents it; "native" is this machine."""
    if name != NATIVE:
        return as_emulated(load_target(name))
    from edgeopt.board.facts import probe_target, read_facts
    from edgeopt.board.local import LocalBoard

    folder = default_cache() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    # The date is part of the text; one that stays lets bundles be found again.
    day = datetime.date(2000, 1, 1)
    text = probe_target(read_facts(LocalBoard()), name=NATIVE, on=day)
    write_atomically(folder / f"{NATIVE}.toml", text.encode())
    return load_target(folder / f"{NATIVE}.toml")


@contextmanager
def _cached(kind: str, key: Mapping[str, object]) -> Iterator[Path]:
    digest = hashlib.sha256(canonical(key).encode()).hexdigest()[:32]
    folder = default_cache() / "bench" / kind / digest
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        yield folder


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (text.rjust(width) for text, width in zip(others, widths[1:], strict=True))
        print("  ".join((first.ljust(widths[0]), *cells)).rstrip(), flush=True)
