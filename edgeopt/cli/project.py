"""edgeopt init, doctor and cache: what surrounds a deployment."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import Json, print_document
from edgeopt.errors import ConfigError


def init(
    directory: Annotated[Path, typer.Argument(help="Folder to lay out; it must be new or empty.")],
    example: Annotated[
        str,
        typer.Option(
            "--example", help="questions: a head on a published encoder. trec: all fine-tuned."
        ),
    ] = "questions",
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Of trec's fine-tuning; 0 by default.")
    ] = None,
) -> None:
    """Lay out an example project: a question classifier with its data."""
    from edgeopt.cli.places import cache_folder
    from edgeopt.example import write_questions, write_trec
    from edgeopt.store import Store

    if example not in ("questions", "trec"):
        raise ConfigError(
            f"there is no example {example!r}", fix="use --example questions or --example trec"
        )
    if example == "questions" and seed is not None:
        raise ConfigError("the head of questions is fitted without a seed", fix="leave out --seed")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is not empty", fix="name a folder that does not exist yet")
    if example == "questions":
        _say("fitting the head of the question classifier (about a minute) ...")
        facts = write_questions(directory)
    else:
        _say("fine-tuning the question classifier (some minutes on one core, once per seed) ...")
        store = Store(cache_folder())
        facts = write_trec(directory, seed=seed or 0, store=store, progress=_say)
    chosen = f"{facts.validation} to choose plans, " if facts.validation else ""
    typer.echo(
        f"{directory}: {facts.train} questions to fit, {chosen}{facts.test} to test; "
        f"float32 accuracy {facts.test_accuracy:.3f}"
    )
    _say(f"next: cd {directory} && edgeopt deploy --target rpi4")


def _say(line: str) -> None:
    typer.echo(line, err=True)


def doctor(as_json: Json = False) -> None:
    """Check what this machine has for compiling, exporting and emulating."""
    from edgeopt.cli.checkup import examine

    findings = examine()
    if as_json:
        rows = [{"part": f.part, "ok": f.ok, "found": f.found, "fix": f.fix} for f in findings]
        print_document({"findings": rows})
    else:
        for each in findings:
            mark = "ok  " if each.ok else "MISS"
            typer.echo(f"{mark}  {each.part}: {each.found}")
            if not each.ok:
                typer.echo(f"      fix: {each.fix}")
    if any(not each.ok and each.required for each in findings):
        raise typer.Exit(2)


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Forget every stage's result.")] = False,
) -> None:
    """Show what the cache holds, or clear it; boards and toolchains stay."""
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
