"""edgeopt targets and edgeopt profiles: what is on the shelf."""

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli.options import Json, SshConfig, print_document

targets = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
profiles = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[
    str, typer.Argument(help="A name from the list, or a .toml file.", show_default=False)
]


@targets.command("list")
def list_targets(as_json: Json = False) -> None:
    """List every kind of device."""
    from edgeopt.report import format_columns
    from edgeopt.target import load_targets

    found = load_targets().values()
    if as_json:
        print_document({"targets": [each.model_dump(mode="json") for each in found]})
        return
    rows = [("target", "cores", "machine", "RAM", "emulated as", "device")]
    for each in found:
        cores = " + ".join(f"{cluster.count}x {cluster.core}" for cluster in each.cluster)
        ram = f"{each.memory.ram / 2**30:g} GiB" if each.memory.ram else "-"
        stand_in = each.emulation.cpu if each.emulation else "-"
        rows.append((each.name, cores, each.isa.machine, ram, stand_in, each.title))
    typer.echo(format_columns(rows, indent=""))


@targets.command("show")
def show_target(
    name: Name = "",
    as_json: Json = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema.")] = False,
) -> None:
    """Print one target's file, with the source of every value."""
    from edgeopt.catalog import find_file
    from edgeopt.target import load_target, target_schema

    if schema:
        typer.echo(json.dumps(target_schema(), indent=1))
    elif as_json:
        print_document({"target": load_target(name).model_dump(mode="json")})
    else:
        load_target(name)
        typer.echo(find_file("targets", name).read_text(encoding="utf-8"), nl=False)


@targets.command("probe")
def probe_board(
    address: Annotated[str, typer.Argument(help="user@host[:port], an alias, or 'local'.")],
    name: Annotated[str, typer.Option("--name", help="Name of the new target.")] = "probed",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
    ssh_config: SshConfig = None,
) -> None:
    """Read a live board and write its target file; what it does not tell stays absent."""
    from edgeopt.board.choose import open_address
    from edgeopt.board.facts import probe_target, read_facts
    from edgeopt.cli.places import check_output, write_output

    check_output(output)
    board = open_address(address, ssh_config=ssh_config)
    try:
        text = probe_target(read_facts(board), name=name)
    finally:
        board.close()
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_output(output, text)
        typer.echo(f"wrote {output}", err=True)


@profiles.command("list")
def list_profiles(as_json: Json = False) -> None:
    """List every profile."""
    from edgeopt.profile import load_profiles
    from edgeopt.report import format_columns
    from edgeopt.units import format_figure

    found = load_profiles().values()
    if as_json:
        print_document({"profiles": [each.model_dump(mode="json") for each in found]})
        return
    rows = [("profile", "methods, least harm first", "flash", "ram", "max drop")]
    for each in found:
        limits = (
            format_figure(each.budget.flash, "bytes"),
            format_figure(each.budget.ram, "bytes"),
            format_figure(each.budget.accuracy_drop, "fraction"),
        )
        cut = [] if each.prune is None else [f"cut {each.prune:.0%}"]
        cut += [] if each.sparsify is None else [each.sparsify.title]
        last = [] if each.prune_most is None else [f"cut up to {each.prune_most:.0%}"]
        rows.append((each.name, ", ".join([*cut, *each.methods, *last]), *limits))
    typer.echo(format_columns(rows, indent=""))


@profiles.command("show")
def show_profile(
    name: Name = "",
    as_json: Json = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema.")] = False,
) -> None:
    """Print one profile's file."""
    from edgeopt.catalog import find_file
    from edgeopt.profile import load_profile, profile_schema

    if schema:
        typer.echo(json.dumps(profile_schema(), indent=1))
    elif as_json:
        print_document({"profile": load_profile(name).model_dump(mode="json")})
    else:
        load_profile(name)
        typer.echo(find_file("profiles", name).read_text(encoding="utf-8"), nl=False)
