"""edgeopt deploy --boards: one release for many boards, with a table of what became of each."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from edgeopt.cli import options
from edgeopt.cli.places import check_output
from edgeopt.cli.request import Request, make_order, started
from edgeopt.errors import ConfigError, FleetIncomplete

if TYPE_CHECKING:
    from edgeopt.board import Board
    from edgeopt.fleet import Connect, Fleet, FleetBoard, Group, Outcome


def deploy_fleet(request: Request, path: Path, *, as_json: bool) -> NoReturn:
    """Push to every board of a fleet file; raises typer.Exit with what the push ends with."""
    from edgeopt.fleet import StateFile, load_fleet, push_fleet

    if request.board is not None:
        raise ConfigError(
            "--board and --boards exclude each other",
            why="one names a board, the other a file of boards",
            fix="leave one of them out",
        )
    fleet = load_fleet(path)
    _check_addresses(fleet, request)
    groups = _make_groups(fleet, request)
    state = StateFile(path.with_suffix(".state.json"), groups[0].run.job.app)
    check_output(state.path)
    if not request.fresh:
        state.load()
    typer.echo(f"{len(fleet.board)} boards of {path.name}, state in {state.path.name}", err=True)
    outcomes = push_fleet(
        fleet, groups, connect=_opener(fleet, request), state=state, progress=_tell
    )
    _print(outcomes, state.path, as_json=as_json)
    raise typer.Exit(_conclude(outcomes))


def _check_addresses(fleet: "Fleet", request: Request) -> None:
    """Understand every address before any board is changed."""
    from edgeopt.board.destination import read_route

    for each in fleet.board:
        read_route(each.address, ssh_config=request.ssh_config)


def _make_groups(fleet: "Fleet", request: Request) -> "list[Group]":
    """Decode what each target's boards get; one order for all boards of a target."""
    from edgeopt.fleet import Group

    groups = []
    for target, boards in fleet.groups().items():
        order = make_order(replace(request, target=target, board=boards[0].address))
        title = replace(order, title=f"{order.job.app} for {len(boards)} {order.job.target.title}")
        with started(title) as run:
            groups.append(Group(target, boards, run))
    return groups


def _opener(fleet: "Fleet", request: Request) -> "Connect":
    from edgeopt.board.choose import open_address
    from edgeopt.board.connect import Patience

    seconds = fleet.patience / 1e3
    patience = Patience(connect=seconds, silence=seconds)

    def connect(board: "FleetBoard") -> "Board":
        return open_address(board.address, ssh_config=request.ssh_config, patience=patience)

    return connect


def _tell(outcome: "Outcome") -> None:
    if outcome.result in ("deployed", "failed"):
        mark = f" ({outcome.code}: {outcome.why})" if outcome.why else ""
        typer.echo(f"  {outcome.name}  {outcome.result} in {outcome.seconds:.1f} s{mark}", err=True)


def _print(outcomes: "Sequence[Outcome]", state: Path, *, as_json: bool) -> None:
    from edgeopt.report import format_columns
    from edgeopt.units import format_bytes

    counts = Counter(each.result for each in outcomes)
    if as_json:
        facts = {"boards": [each.model_dump(mode="json") for each in outcomes]}
        options.print_document({"state": str(state), "counts": dict(counts), **facts})
        return
    rows = [("board", "target", "result", "release", "sent", "time")]
    for each in outcomes:
        seen = each.result == "deployed"
        name = f"{each.name} (canary)" if each.canary else each.name
        figures = (format_bytes(each.sent) if seen else "-", f"{each.seconds:.1f} s")
        rows.append((name, each.target, each.result, each.digest[:12] or "-", *figures))
    typer.echo(format_columns(rows, indent=""))
    for each in outcomes:
        if each.result == "failed":
            typer.echo(f"{each.name}: {each.why}\n  fix: {each.fix}")
    typer.echo(", ".join(f"{count} {result}" for result, count in sorted(counts.items())))


def _conclude(outcomes: "Sequence[Outcome]") -> int:
    """Say what is left to do; return the exit code."""
    missing = [each for each in outcomes if not each.good]
    if not missing:
        return 0
    failed = sum(each.result == "failed" for each in missing)
    error = FleetIncomplete(
        f"{len(missing)} of {len(outcomes)} boards do not have the release",
        why=f"{failed} failed, {len(missing) - failed} were not tried; each has one release, whole",
        fix="run the same command again: boards that have it are left out",
    )
    typer.echo(f"error: {error}", err=True)
    return error.exit_code
