"""From the strings of a command line and a project file to a job: decoded once, strictly."""

import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from edgeopt.cli.places import cache_folder, tile_file, times_file
from edgeopt.cli.progress import Progress
from edgeopt.errors import ConfigError

if TYPE_CHECKING:
    from edgeopt.artifact import Report, StageRecord
    from edgeopt.board import Board, Kind
    from edgeopt.board.choose import Choice
    from edgeopt.board.owner import Owner
    from edgeopt.budget import Budget
    from edgeopt.deploy.signature import Signer
    from edgeopt.job import Job, Run
    from edgeopt.profile import Profile
    from edgeopt.project import Project
    from edgeopt.target import Target
    from edgeopt.task import Task
    from edgeopt.tiles import Tile, TileKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the user typed; None is what the project file or the profile says."""

    target: str
    project: Path
    model: str | None = None
    profile: str | None = None
    board: str | None = None
    ram: str | None = None
    flash: str | None = None
    latency: str | None = None
    max_drop: str | None = None
    shapes: Sequence[str] = ()
    values: Sequence[str] = ()
    ssh_config: Path | None = None
    fresh: bool = False
    allow_unscheduled: bool = False
    trim_vocabulary: bool | None = None
    prune: str | None = None
    effort: str = "standard"
    #: Whether a board will be asked for; what is only compiled needs none.
    on_board: bool = True
    #: Whether tiles that were measured before are used.
    tuned: bool = True
    #: A private key; None is the project file's, or none.
    sign: Path | None = None
    downgrade: bool = False
    confine: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """A job, and how to reach the board that it is for."""

    job: "Job"
    connect: "Callable[[], Board]"
    #: What the run is about, for its first line.
    title: str


def make_order(request: Request) -> Order:
    """Decode a request; raises ConfigError before anything slow starts."""
    from edgeopt.board.choose import as_emulated
    from edgeopt.effort import read_effort
    from edgeopt.job import Job
    from edgeopt.model import parse_shape
    from edgeopt.profile import load_profile
    from edgeopt.target import load_target

    folder = request.project.resolve()
    target = load_target(request.target, project=folder)
    limits, effort = _limits(request), read_effort(request.effort)
    named = None
    if request.profile is not None:
        named = load_profile(request.profile, project=folder)
    project = _project_of(request, folder)
    if request.max_drop is not None and project.task is None:
        raise ConfigError(
            "--max-drop needs a task",
            why="without labelled samples no accuracy is measured",
            fix="add [task] to edgeopt.toml",
        )
    profile = named or load_profile(project.profile, project=folder)
    task = _task_of(request, project, folder)
    written = [*(f"{name}={shape}" for name, shape in project.shapes.items()), *request.shapes]
    choice = _choose(request, target, project.boards)
    task, shapes = _shortened(task, dict(parse_shape(each) for each in written))
    job = Job(
        app=project.app,
        project=folder,
        model=project.model,
        shapes=shapes,
        outputs=project.outputs,
        values=project.values | dict(_parse_value(each) for each in request.values),
        target=as_emulated(target) if choice.kind == "emulated" else target,
        profile=profile.model_copy(
            update={"budget": profile.budget.merged(limits), "prune": _share(request, profile)}
        ),
        task=task,
        kind=choice.kind,
        effort=effort,
        fresh=request.fresh,
        allow_unscheduled=request.allow_unscheduled,
        tiles=_tiles_for(target, choice.kind) if request.tuned else {},
        pace=_last_pace(folder, target.name, choice.kind),
        times=times_file(target.name, choice.kind),
        signer=_signer_of(request, project, folder),
        downgrade=request.downgrade,
        confine=request.confine,
    )
    return Order(job, choice.connect, f"{project.app} for {target.title}: {choice.why}")


def _signer_of(request: Request, project: "Project", folder: Path) -> "Signer | None":
    """Return who signs, after a trial: a key that cannot is told before anything slow starts."""
    from edgeopt.deploy.signature import Signer, sign_release

    named = project.signing
    key = request.sign or (Path(named.key) if named and named.key else None)
    if key is None and (named is None or not request.on_board):
        return None
    signer = Signer(
        key=folder / key.expanduser() if key else None, allowed=_allowed_of(project, folder)
    )
    sign_release(signer, app=project.app, digest="0" * 64, target="trial")
    return signer


def _allowed_of(project: "Project", folder: Path) -> Path | None:
    named = project.signing.allowed_signers if project.signing else None
    return folder / Path(named).expanduser() if named else None


def _task_of(request: Request, project: "Project", folder: Path) -> "Task | None":
    from edgeopt.task import TextClassification, resolve_task

    task = project.task
    wanted = request.trim_vocabulary
    if wanted and not isinstance(task, TextClassification):
        raise ConfigError(
            "--trim-vocabulary needs a task of texts",
            why="its texts and its tokenizer say which pieces are needed",
            fix='add [task] with kind = "text-classification" to edgeopt.toml',
        )
    if wanted is not None and isinstance(task, TextClassification):
        task = task.model_copy(update={"trim_vocabulary": wanted})
    return resolve_task(task, folder) if task else None


def _shortened(
    task: "Task | None", shapes: dict[str, tuple[int, ...]]
) -> "tuple[Task | None, Mapping[str, tuple[int, ...]]]":
    """Shorten a task's texts where it asks for that, and say by how much."""
    from edgeopt.task import TextClassification

    if not isinstance(task, TextClassification) or task.trim_length is None:
        return task, shapes
    from edgeopt.trim import trim_length

    made = trim_length(task, shapes)
    typer.echo(made.remark, err=True)
    return made.task, made.shapes


def _share(request: Request, profile: "Profile") -> float | None:
    """Return the share of the operations to cut; None is none."""
    from edgeopt.units import parse_fraction

    if request.prune is None:
        return profile.prune
    try:
        share = parse_fraction(request.prune)
    except ValueError as error:
        raise ConfigError(
            f"--prune {request.prune!r} cannot be read", why=str(error), fix="write --prune 50%"
        ) from error
    if not 0 <= share < 1:
        raise ConfigError(
            f"--prune {request.prune!r} cannot be cut",
            why="something of the model must be left",
            fix="write a share from 0% to 99%",
        )
    return share or None


def _tiles_for(target: "Target", kind: "Kind") -> "Mapping[TileKey, Tile]":
    """Return the tiles that edgeopt tune found on such boards; tell of those that cannot be."""
    from edgeopt.tiles import measured_on, name_cpu, read_tiles

    cpu = name_cpu(target)
    path = tile_file(cpu)
    found = read_tiles(path, cpu).chosen(measured_on(kind))
    if not found:
        return {}
    from edgeopt.compile.tuning import check_tiles

    good, refused = check_tiles(found, target)
    for each in refused:
        typer.echo(f"warning: {path}: {each}; the default is used", err=True)
    return good


@dataclass(frozen=True, slots=True)
class Visit:
    """An application that was deployed, and how to reach its board."""

    app: str
    connect: "Callable[[], Board]"
    #: The lines of those whose signatures count; None: releases need not be signed.
    allowed: str | None = None


def make_visit(request: Request, app: str | None) -> Visit:
    """Decode who is asked about what; neither model nor data need be here."""
    from edgeopt.deploy.place import check_name
    from edgeopt.project import FILE, load_project
    from edgeopt.target import load_target

    folder = request.project.resolve()
    target = load_target(request.target, project=folder)
    project = load_project(folder) if (folder / FILE).is_file() else None
    name = app or (project.app if project else _reported_app(folder, target.name))
    if name is None:
        raise ConfigError(
            f"there is no edgeopt.toml in {folder}, and nothing was deployed from here",
            fix="name what was deployed with --app, or its project's folder with -C",
        )
    boards = project.boards if project else {}
    connect = _choose(request, target, boards).connect
    allowed = None
    if project is not None and project.signing is not None:
        from edgeopt.deploy.signature import Signer, read_allowed

        key = project.signing.key
        signer = Signer(
            folder / Path(key).expanduser() if key else None, _allowed_of(project, folder)
        )
        allowed = read_allowed(signer)
    return Visit(check_name(name, "application"), connect, allowed)


def _last_pace(project: Path, target: str, kind: "Kind") -> float | None:
    """Return how fast the last report found such a board; None where it says nothing of one."""
    last = last_report(project, target)
    return last.pace if last is not None and last.kind == kind else None


def _reported_app(folder: Path, target: str) -> str | None:
    """Return the app of the last report, which a model without a project file leaves."""
    last = last_report(folder, target)
    return None if last is None else last.app


def last_report(folder: Path, target: str) -> "Report | None":
    """Return what the last deploy from a folder to such a board found; None before the first."""
    from edgeopt.artifact import Report
    from edgeopt.cli.places import report_folder

    try:
        text = (report_folder(folder) / f"{target}.json").read_bytes()
        return Report.model_validate_json(text)
    except (OSError, ValueError):
        return None


def _choose(request: Request, target: "Target", boards: Mapping[str, str]) -> "Choice":
    from edgeopt.board.choose import choose_board

    address = request.board
    if address is None:
        address = boards.get(target.name)
    return choose_board(
        target,
        address,
        ssh_config=request.ssh_config,
        cache=cache_folder(),
        required=request.on_board,
    )


def _project_of(request: Request, folder: Path) -> "Project":
    """Read the project file; a model on the command line replaces the file's, or the file."""
    from edgeopt.project import FILE, Project, load_project

    if request.model is None:
        return load_project(folder)
    if (folder / FILE).is_file():
        return load_project(folder).model_copy(update={"model": request.model})
    stem = request.model.partition(":")[0] if ":" in request.model else Path(request.model).stem
    name = re.sub(r"[^A-Za-z0-9._-]", "-", stem).strip(".-_")[:64]
    return Project(app=name or "model", model=request.model)


def _parse_value(text: str) -> tuple[str, float]:
    """Read one --value option: an input's name and a number."""
    name, equals, number = text.rpartition("=")
    try:
        if name and equals and math.isfinite(float(number)):
            return name, float(number)
    except ValueError:
        pass
    raise ConfigError(f"--value {text!r} cannot be read", fix="write --value sr=16000")


def _limits(request: Request) -> "Budget":
    from pydantic import ValidationError

    from edgeopt.budget import Budget

    given = {
        "flash": request.flash,
        "ram": request.ram,
        "latency": request.latency,
        "accuracy_drop": request.max_drop,
    }
    try:
        return Budget.model_validate(
            {name: text for name, text in given.items() if text is not None}
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = {"accuracy_drop": "max-drop"}.get(str(first["loc"][0]), str(first["loc"][0]))
        raise ConfigError(
            f"--{option} {first['input']!r} cannot be read",
            why=first["msg"].removeprefix("Value error, "),
            fix="write a number with its unit: --ram 32MB --latency 30ms --max-drop 1%",
        ) from error


@contextmanager
def started(order: Order) -> "Iterator[Run]":
    """Begin a run that tells its story on stderr."""
    from edgeopt.heap import keep_freed_memory
    from edgeopt.job import Run
    from edgeopt.store import Store

    typer.echo(order.title, err=True)
    if order.job.effort.data_free:
        # Other efforts hold much at once, in pieces that leave gaps.
        keep_freed_memory()
    person = sys.stderr.isatty()
    begin, advance = (_begin, Progress().show) if person else (_silent, _silent)
    store = Store(cache_folder())
    yield Run(order.job, store, _tell, begin, tell_wait, advance)
    try:
        store.expire()
    except OSError as error:
        typer.echo(f"warning: the cache keeps what nobody uses: {error}", err=True)


def tell_wait(owner: "Owner") -> None:
    """Say who is waited for."""
    typer.echo(
        f"  waiting for {owner.who} (its lease ends in {owner.left_s} s at the latest)", err=True
    )


def read_wait(text: str | None) -> float:
    """Return seconds of --wait; 0 where it was not given."""
    from edgeopt.units import parse_millis

    try:
        return 0.0 if text is None else parse_millis(text) / 1e3
    except ValueError as error:
        raise ConfigError(
            f"--wait {text!r} cannot be read", why=str(error), fix="write it like --wait 10min"
        ) from error


def _begin(name: str) -> None:
    # Overwritten by the line that tells how it ended.
    typer.echo(f"  {name} ...\r", err=True, nl=False)


def _tell(record: "StageRecord") -> None:
    source = "from the cache" if record.cached else f"{record.seconds:.1f} s"
    detail = f"  {record.detail}" if record.detail else ""
    typer.echo(f"  {record.name:<10} {source:>14}{detail}", err=True)


def _silent(_name: str, _share: float = 0.0) -> None:
    """Say nothing: lines that overwrite one another are for people only."""
