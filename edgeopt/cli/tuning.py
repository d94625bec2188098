"""edgeopt tune: measure tiles on a board, and keep what later compiles use."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli import options
from edgeopt.cli.places import tile_file
from edgeopt.cli.request import Request, make_order, started

if TYPE_CHECKING:
    from edgeopt.cli.request import Order
    from edgeopt.tiles import TileFile, TunedTile
    from edgeopt.tune import Kernel, Outcome


def tune(
    target: options.TargetName,
    model: options.ModelSpec = None,
    profile: options.ProfileName = None,
    board: options.BoardAddress = None,
    shape: options.Shapes = None,
    value: options.Values = None,
    project: options.Folder = Path(),
    ssh_config: options.SshConfig = None,
    kernels: Annotated[
        int, typer.Option("--kernels", min=1, help="How many, those of most work first.")
    ] = 8,
    show: Annotated[bool, typer.Option("--show", help="Print what is stored.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Forget what is stored.")] = False,
    as_json: options.Json = False,
) -> None:
    """Measure the tiles of a model's largest products on the board, for later compiles."""
    from edgeopt.target import load_target
    from edgeopt.tiles import TileFile, name_cpu, read_tiles

    cpu = name_cpu(load_target(target, project=project.resolve()))
    path = tile_file(cpu)
    if clear:
        path.unlink(missing_ok=True)
    stored = read_tiles(path, cpu)
    if show or clear:
        _print(stored, path, as_json=as_json)
        return
    request = Request(
        target=target,
        project=project,
        model=model,
        profile=profile,
        board=board,
        shapes=shape or (),
        values=value or (),
        ssh_config=ssh_config,
        tuned=False,
    )
    found = _run(make_order(request), path, stored, kernels=kernels)
    _print(TileFile(cpu=cpu).merged(found), path, as_json=as_json)


def _run(
    order: "Order", path: Path, stored: "TileFile", *, kernels: int
) -> "tuple[TunedTile, ...]":
    """Tune, and write the file after each kernel: Ctrl-C keeps what was measured."""
    from edgeopt.tiles import write_tiles
    from edgeopt.tune import Story, tune_model

    found: list[TunedTile] = []

    def begin(kernel: "Kernel") -> None:
        typer.echo(f"  {kernel.key}: {len(kernel.tiles)} tiles ...", err=True)

    def keep(outcome: "Outcome") -> None:
        found.append(outcome.tuned)
        write_tiles(path, stored.merged(found))
        typer.echo(f"    {_describe(outcome)}", err=True)

    with started(order) as run:
        tune_model(run, order.connect, kernels=kernels, story=Story(begin, keep))
    return tuple(found)


def _describe(outcome: "Outcome") -> str:
    """Say what each tile takes, as a multiple of what the default takes, and which one it is."""
    (default, usual), *others = outcome.fastest.items()
    took = ", ".join(f"{tile[0]}x{tile[1]} {each / usual:.3f}" for tile, each in others)
    best = outcome.tuned.tile
    chosen = f"{best[0]}x{best[1]}: {_gain(outcome.tuned)}" if best else "the default stays"
    return f"{default[0]}x{default[1]} 1, {took}; {chosen}"


def _gain(found: "TunedTile") -> str:
    unit = "less time" if found.measured == "time" else "fewer instructions"
    return f"{found.gain / (1 + found.gain):.1%} {unit}"


def _print(tiles: "TileFile", path: Path, *, as_json: bool) -> None:
    from edgeopt.report import format_columns

    if as_json:
        options.print_document({"path": str(path), **tiles.model_dump(mode="json")})
        return
    rows = [("kernel", "tile", "gain", "measured", "with edgeopt")]
    for each in tiles.tiles:
        tile = "default" if each.tile is None else f"{each.tile[0]}x{each.tile[1]}"
        gain = "-" if each.tile is None else _gain(each)
        rows.append((str(each.key), tile, gain, str(each.date), each.edgeopt))
    typer.echo(f"{tiles.cpu}: {path}")
    typer.echo(format_columns(rows))
    if any(each.measured == "instructions" for each in tiles.tiles):
        typer.echo(
            "instructions rank code, they are not time: only emulated boards get these tiles",
            err=True,
        )


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(tune)
