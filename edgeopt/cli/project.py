"""edgeopt init, doctor and cache: what surrounds a deployment."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from edgeopt.cli.options import BoardAddress, Folder, Json, SshConfig, print_document
from edgeopt.cli.request import Request, make_visit
from edgeopt.errors import ConfigError, EdgeoptError

if TYPE_CHECKING:
    from edgeopt.board import Board
    from edgeopt.cli.checkup import Finding


def init(
    directory: Annotated[Path, typer.Argument(help="Folder to lay out; it must be new or empty.")],
    example: Annotated[
        str,
        typer.Option(
            "--example",
            help="questions: a head on a published encoder. trec: all fine-tuned. fashion: images.",
        ),
    ] = "questions",
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of what is trained; 0 by default.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Folder of fashion's images (default: where Debian's are)."),
    ] = None,
) -> None:
    """Lay out an example project: a classifier with its data."""
    from edgeopt.cli.places import cache_folder
    from edgeopt.example import write_fashion, write_questions, write_trec
    from edgeopt.store import Store

    if example not in ("questions", "trec", "fashion"):
        raise ConfigError(
            f"there is no example {example!r}",
            fix="use --example questions or --example trec, or --example fashion",
        )
    if example == "questions" and seed is not None:
        raise ConfigError("the head of questions is fitted without a seed", fix="leave out --seed")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty", fix="name a folder that does not exist yet")
    if data is not None and example != "fashion":
        raise ConfigError(f"{example} has its data from packages", fix="leave out --data")
    store = Store(cache_folder())
    if example == "questions":
        _say("fitting the head of the question classifier (about a minute) ...")
        facts = write_questions(directory)
    elif example == "fashion":
        _say("training the classifier of images (some minutes on one core, once per seed) ...")
        facts = write_fashion(directory, seed=seed or 0, store=store, progress=_say, data=data)
    else:
        _say("fine-tuning the question classifier (some minutes on one core, once per seed) ...")
        facts = write_trec(directory, seed=seed or 0, store=store, progress=_say)
    chosen = f"{facts.validation} to choose plans, " if facts.validation else ""
    typer.echo(
        f"{directory}: {facts.train} samples to fit, {chosen}{facts.test} to test; "
        f"float32 accuracy {facts.test_accuracy:.3f}"
    )
    _say(f"next: cd {directory} && edgeopt deploy --target rpi4")


def _say(line: str) -> None:
    typer.echo(line, err=True)


def doctor(
    target: Annotated[
        str | None, Option("--target", "-t", help="Check a board of this kind as well.")
    ] = None,
    board: BoardAddress = None,
    project: Folder = Path(),
    ssh_config: SshConfig = None,
    bundle: Annotated[
        Path | None,
        Option("--bundle", help="Scan this folder of 'edgeopt compile -o', not the last deploy's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check what this machine has for compiling and emulating, and what a board has to run it."""
    from edgeopt.cli.checkup import examine, judge_cache
    from edgeopt.cli.places import cache_folder
    from edgeopt.store import Store

    folder = cache_folder()
    free = shutil.disk_usage(folder).free
    findings = [*examine(), judge_cache(Store(folder).size(), free)]
    if target is None and board is not None:
        target = _kind_of(board, project.resolve())
    if target is not None:
        findings += _examine_code(target, project, bundle)
    elif bundle is not None:
        raise ConfigError("for which kind of device is it?", fix="add --target rpi4")
    if board is not None or (target is not None and bundle is None):
        findings += _examine_board(
            Request(target=target or "", project=project, board=board, ssh_config=ssh_config)
        )
    _print_findings(findings, as_json=as_json)
    if any(each.verdict == "fail" for each in findings):
        raise typer.Exit(2)


def _print_findings(findings: "list[Finding]", *, as_json: bool) -> None:
    if as_json:
        print_document({"findings": [asdict(f) | {"verdict": f.verdict} for f in findings]})
        return
    for each in findings:
        mark = {"fail": "MISS", "warn": "warn"}.get(each.verdict, "ok  ")
        typer.echo(f"{mark}  {each.part}: {each.found}")
        if not each.ok:
            typer.echo(f"      fix: {each.fix}")


def _examine_code(target: str, project: Path, bundle: Path | None) -> "list[Finding]":
    """Scan what the user named, or what the project's last deploy to such a board sent."""
    from edgeopt.cli.places import cache_folder
    from edgeopt.cli.security import find_pushed, judge_bundle, judge_pushed
    from edgeopt.store import Store
    from edgeopt.target import load_target

    folder = project.resolve()
    kind = load_target(target, project=folder)
    if bundle is not None:
        return judge_bundle(kind, bundle)
    return judge_pushed(kind, find_pushed(kind, folder, Store(cache_folder())))


def _kind_of(board: str, folder: Path) -> str | None:
    """Return the target whose board this is, by the project file; None where it does not tell."""
    from edgeopt.project import FILE, load_project

    boards = load_project(folder).boards if (folder / FILE).is_file() else {}
    kinds = [target for target, address in boards.items() if address == board]
    return kinds[0] if len(kinds) == 1 else None


def _examine_board(request: Request) -> "list[Finding]":
    """Reach the board, if it lets us in, and look at it; nothing stays changed there."""
    from edgeopt.board.canary import try_memory_limit
    from edgeopt.board.facts import read_facts
    from edgeopt.cli.checkup import Finding, judge_board
    from edgeopt.cli.preconditions import examine_place
    from edgeopt.cli.security import judge_limits
    from edgeopt.target import load_target
    from edgeopt.trial import ROOT

    folder = request.project.resolve()
    target = load_target(request.target, project=folder) if request.target else None
    connect, app = _way_to(request)
    try:
        live = connect()
        try:
            facts = read_facts(live, folder=ROOT)
            place = examine_place(live, ROOT, app)
            limits = try_memory_limit(live)
        finally:
            live.close()
    except EdgeoptError as error:
        found = "; ".join(filter(None, (error.what, error.why)))
        return [*_examine_keys(request), Finding("board", False, found, error.fix)]
    kind = Finding(
        "kind of device",
        target is not None,
        target.title if target else "unknown: neither its processor nor code was looked at",
        "add --target rpi4, or name the board under [boards] in edgeopt.toml",
        required=False,
    )
    return [
        *_examine_keys(request),
        Finding("board", True, f"{live.name} answers", ""),
        kind,
        *judge_board(target, facts),
        *place,
        judge_limits(limits),
    ]


def _way_to(request: Request) -> "tuple[Callable[[], Board], str]":
    """Return how the board is reached, and the application whose folder is looked at."""
    from edgeopt.board.choose import open_address
    from edgeopt.project import FILE, load_project

    folder, address = request.project.resolve(), request.board
    app = load_project(folder).app if (folder / FILE).is_file() else "doctor"
    if request.target:
        return make_visit(request, app).connect, app
    if address == "emulated":
        raise ConfigError("which kind of device is to be emulated?", fix="add --target rpi4")
    assert address is not None
    return lambda: open_address(address, ssh_config=request.ssh_config), app


def _examine_keys(request: Request) -> "list[Finding]":
    """Look at the keys of the way to a board that was named; others have none."""
    from edgeopt.board.destination import read_route
    from edgeopt.cli.security import judge_route
    from edgeopt.project import FILE, load_project

    folder, address = request.project.resolve(), request.board
    if address is None and (folder / FILE).is_file():
        address = load_project(folder).boards.get(request.target)
    if address in (None, "local", "emulated"):
        return []
    return judge_route(read_route(address, ssh_config=request.ssh_config))


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Forget every stage's result.")] = False,
) -> None:
    """Show what the cache holds, or clear it; boards and toolchains stay.

    A result that no run asks for is removed after 30 days anyway.
    """
    from edgeopt.cli.places import cache_folder
    from edgeopt.report import format_columns
    from edgeopt.store import Store
    from edgeopt.units import format_bytes

    folder = cache_folder()
    store = Store(folder)
    if clear:
        store.clear()
    sizes = store.size()
    rows = [("stage", "size"), *((name, format_bytes(size)) for name, size in sizes.items())]
    typer.echo(f"{folder} ({format_bytes(shutil.disk_usage(folder.parent).free)} free)")
    typer.echo(format_columns(rows))


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (init, doctor, cache):
        app.command()(command)
