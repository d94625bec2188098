"""edgeopt board: the emulated stand-ins for devices that are not at hand."""

import os
from typing import Annotated

import typer

from edgeopt.cli.options import Json, print_document
from edgeopt.errors import ConfigError

boards = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="Kind of device: rpi4.")]


@boards.command()
def start(
    name: Name,
    mirror: Annotated[
        str,
        typer.Option("--mirror", help="Debian archive and release, where apt has none configured."),
    ] = "",
) -> None:
    """Start a target's emulated board, building its image when there is none yet."""
    from edgeopt.board.emulator import open_emulated
    from edgeopt.cli.places import cache_folder
    from edgeopt.target import load_target

    target = load_target(name)
    typer.echo(f"starting an emulated {target.title} ...", err=True)
    board = open_emulated(target, cache=cache_folder(), mirror=mirror)
    try:
        typer.echo(f"{board.name} answers")
    finally:
        board.close()


@boards.command()
def stop(name: Name) -> None:
    """Stop an emulated board; what was deployed on it is lost."""
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
    os.execvp(argv[0], argv)  # noqa: S606  (the program is ssh, with a list of arguments)
