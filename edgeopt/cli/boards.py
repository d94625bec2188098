"""edgeopt board: who uses a board, and the emulated stand-ins for those that are not at hand."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli.options import Folder, Json, SshConfig, print_document
from edgeopt.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from edgeopt.board import Board
    from edgeopt.board.lease import Tenancy

boards = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="Kind of device: rpi4.")]
Used = Annotated[
    str,
    typer.Argument(
        metavar="BOARD", help="user@host[:port], an alias, 'local', or a target: its board."
    ),
]


@boards.command()
def start(
    name: Name,
    mirror: Annotated[
        str,
        typer.Option("--mirror", help="Debian archive and release, where apt has none configured."),
    ] = "",
    keep: Annotated[
        bool, typer.Option("--keep", help="Give it a disk of its own, which outlives it.")
    ] = False,
) -> None:
    """Start a target's emulated board, building its image when there is none yet."""
    from edgeopt.board.emulator import open_emulated
    from edgeopt.cli.places import cache_folder
    from edgeopt.target import load_target

    target = load_target(name)
    typer.echo(f"starting an emulated {target.title} ...", err=True)
    board = open_emulated(target, cache=cache_folder(), mirror=mirror, keep=keep)
    try:
        typer.echo(f"{board.name} answers")
    finally:
        board.close()


@boards.command()
def stop(name: Name) -> None:
    """Stop an emulated board; what was deployed on it is lost, unless it was started to keep it."""
    from edgeopt.board.emulator import stop_board
    from edgeopt.cli.places import cache_folder

    ended = stop_board(name, cache=cache_folder())
    typer.echo("stopped" if ended else f"no emulated {name} is running")


@boards.command("list")
def list_running(as_json: Json = False) -> None:
    """List the emulated boards that run now."""
    from edgeopt.board.emulator import list_boards
    from edgeopt.cli.places import cache_folder

    found = list_boards(cache=cache_folder())
    if as_json:
        print_document({"boards": [each.model_dump(mode="json") for each in found]})
        return
    for each in found:
        typer.echo(f"{each.name}  {each.cpu}  port {each.port}  pid {each.pid}")


@boards.command()
def shell(name: Name) -> None:
    """Open a shell on a running emulated board, with ssh."""
    from edgeopt.board.emulator import list_boards, shell_command
    from edgeopt.cli.places import cache_folder

    running = {each.name: each for each in list_boards(cache=cache_folder())}
    if name not in running:
        raise ConfigError(f"no emulated {name} is running", fix=f"edgeopt board start {name}")
    argv = shell_command(running[name])
    os.execvp(argv[0], argv)  # noqa: S606  (ssh, with a list of arguments)  # nosec B606


@boards.command()
def who(
    board: Used, project: Folder = Path(), ssh_config: SshConfig = None, as_json: Json = False
) -> None:
    """Show who uses a board, since when, for how long yet, and what of ours runs there."""
    from edgeopt.board.lease import read_tenancy
    from edgeopt.trial import ROOT

    with _reached(board, project, ssh_config) as live:
        found = read_tenancy(live, ROOT)
        name = live.name
    if as_json:
        owner = asdict(found.owner) if found.owner.held else None
        processes = [asdict(each) for each in found.processes]
        facts = {"board": name, "owner": owner, "fence": found.fence, "processes": processes}
        print_document(facts)
        return
    typer.echo(_format_tenancy(name, found))


@boards.command()
def kick(
    board: Used,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    project: Folder = Path(),
    ssh_config: SshConfig = None,
) -> None:
    """Take a board from who uses it: end its commands there, and let it write nothing more."""
    from edgeopt.board.lease import kick_owner, read_tenancy
    from edgeopt.trial import ROOT

    with _reached(board, project, ssh_config) as live:
        found = read_tenancy(live, ROOT)
        typer.echo(_format_tenancy(live.name, found))
        if not found.owner.held:
            return
        if not yes and not _confirmed(f"end it and free {live.name}?"):
            typer.echo("nothing was changed")
            raise typer.Exit(ConfigError.exit_code)
        fence = kick_owner(live, ROOT, found.owner, by=f"edgeopt board kick {board}")
        left = read_tenancy(live, ROOT).processes
    gone = [each for each in left if each.token == found.owner.token]
    typer.echo(f"kicked; the board is free (fence {fence})")
    for each in gone:
        typer.echo(f"warning: process {each.pid} does not end: {each.command}", err=True)


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(question, why="there is nobody to ask", fix="add --yes")
    try:
        return typer.confirm(question)
    except typer.Abort as error:
        raise Interrupted("interrupted", fix="nothing was changed") from error


def _format_tenancy(name: str, found: "Tenancy") -> str:
    owner = found.owner
    lines = [f"{name} is free (last fence {found.fence})"]
    if owner.held:
        lines = [
            f"{name} is held by {owner.who}",
            f"  since     {owner.held_s} s ago",
            f"  ends      in {owner.left_s} s, unless it is heard of again",
            f"  fence     {owner.fence}",
        ]
    for each in found.processes:
        stray = "" if each.token == owner.token else "  (of an earlier lease)"
        lines.append(f"  process   {each.pid}  {each.command}{stray}")
    return "\n".join(lines)


@contextmanager
def _reached(name: str, project: Path, ssh_config: Path | None) -> "Iterator[Board]":
    live = _reach(name, project, ssh_config)
    try:
        yield live
    finally:
        live.close()


def _reach(name: str, project: Path, ssh_config: Path | None) -> "Board":
    """Connect to a board by its address, or to the one of a target; no emulator is started."""
    from edgeopt.board.choose import choose_board, open_address
    from edgeopt.board.emulator import list_boards
    from edgeopt.cli.places import cache_folder
    from edgeopt.project import FILE, load_project
    from edgeopt.target import load_targets

    folder = project.resolve()
    target = load_targets(project=folder).get(name)
    if target is None:
        return open_address(name, ssh_config=ssh_config)
    addresses = load_project(folder).boards if (folder / FILE).is_file() else {}
    cache = cache_folder()
    choice = choose_board(target, addresses.get(name), ssh_config=ssh_config, cache=cache)
    running = {each.name for each in list_boards(cache=cache)}
    if choice.kind == "emulated" and name not in running:
        raise ConfigError(
            f"no emulated {name} is running, so nobody uses it",
            fix=f"name another board's address, or: edgeopt board start {name}",
        )
    return choice.connect()
