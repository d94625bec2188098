"""edgeopt deploy and what surrounds it: plan, compile, status, history, rollback, report."""

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli import options
from edgeopt.cli.again import list_commands
from edgeopt.cli.fleets import deploy_fleet
from edgeopt.cli.places import check_output, report_folder, write_output
from edgeopt.cli.planning import candidates_shown
from edgeopt.cli.request import (
    Request,
    Visit,
    make_order,
    make_visit,
    read_wait,
    started,
    tell_wait,
)
from edgeopt.cli.security import describe_signature
from edgeopt.errors import ConfigError

if TYPE_CHECKING:
    from edgeopt.artifact import Report


def deploy(
    target: options.SomeTarget = None,
    model: options.ModelSpec = None,
    profile: options.ProfileName = None,
    board: options.BoardAddress = None,
    boards: options.Boards = None,
    ram: options.Ram = None,
    flash: options.Flash = None,
    latency: options.Latency = None,
    max_drop: options.MaxDrop = None,
    shape: options.Shapes = None,
    value: options.Values = None,
    project: options.Folder = Path(),
    ssh_config: options.SshConfig = None,
    html: options.Html = None,
    reference: options.Reference = True,
    fresh: options.Fresh = False,
    allow_unscheduled: options.Unscheduled = False,
    trim_vocabulary: options.TrimVocabulary = None,
    prune: options.Prune = None,
    effort: options.EffortName = "standard",
    sign: options.Sign = None,
    downgrade: options.Downgrade = False,
    confine: options.Confine = False,
    wait: options.Wait = None,
    as_json: options.Json = False,
) -> None:
    """Fit a model to its budget, compile it, prove it on the board, and keep it there."""
    if target is None and boards is None:
        raise ConfigError("for which kind of device?", fix="add --target rpi4")
    request = Request(
        target=target or "",
        project=project,
        model=model,
        profile=profile,
        board=board,
        ram=ram,
        flash=flash,
        latency=latency,
        max_drop=max_drop,
        shapes=shape or (),
        values=value or (),
        ssh_config=ssh_config,
        fresh=fresh,
        allow_unscheduled=allow_unscheduled,
        trim_vocabulary=trim_vocabulary,
        prune=prune,
        effort=effort,
        sign=sign,
        downgrade=downgrade,
        confine=confine,
    )
    check_output(html)
    patience = read_wait(wait)
    if boards is not None:
        deploy_fleet(request, boards, as_json=as_json)
    report = _deploy(request, reference=reference, wait=patience)
    _save_report(report, project, html)
    _print_report(report, as_json=as_json)
    raise typer.Exit(report.exit_code)


def _deploy(request: Request, *, reference: bool, wait: float) -> "Report":
    from edgeopt.pipeline import deploy as run_deploy

    order = make_order(request)
    with started(order) as run, candidates_shown():
        report = run_deploy(run, order.connect, reference=reference, wait=wait).report
    return report.model_copy(update={"commands": list_commands(request)})


def _save_report(report: "Report", project: Path, html: Path | None) -> None:
    """Keep the report; the release is on the board, so that a full disk here undoes nothing."""
    from edgeopt.report import format_html
    from edgeopt.store import write_atomically

    folder = report_folder(project)
    page = format_html(report)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = report.model_dump_json(indent=1)
        write_atomically(folder / f"{report.target}.json", text.encode())
        write_atomically(folder / f"{report.target}.html", page.encode())
        if html is not None:
            html.write_text(page, encoding="utf-8")
    except OSError as error:
        typer.echo(f"warning: the report is not kept: {error}", err=True)
    else:
        typer.echo(f"report: {html or folder / f'{report.target}.html'}", err=True)


def _print_report(report: "Report", *, as_json: bool) -> None:
    from edgeopt.report import format_table

    typer.echo(report.model_dump_json(indent=1) if as_json else format_table(report))


def status(
    target: options.TargetName,
    board: options.BoardAddress = None,
    project: options.Folder = Path(),
    ssh_config: options.SshConfig = None,
    app: options.AppName = None,
    check: Annotated[
        bool, typer.Option("--check", help="Hash its files on the board, and verify its signature.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show what is deployed on a board now."""
    from edgeopt.deploy import read_status
    from edgeopt.trial import ROOT

    visit = _visit(target, board, project, ssh_config, app)
    live = visit.connect()
    try:
        found = read_status(live, visit.app, root=ROOT, check=check)
        signature = describe_signature(live, found, visit.allowed, check=check)
    finally:
        live.close()
    if as_json:
        options.print_document(found.model_dump(mode="json") | {"signature": signature})
        return
    typer.echo(f"{found.app} on {found.board}: {found.state}")
    if found.meaning:
        typer.echo(f"  {found.meaning}")
    for name, digest in (("current", found.current), ("previous", found.previous)):
        typer.echo(f"  {name:<9} {digest[:12] or '-'}")
    if found.files_good is not None:
        typer.echo(f"  files     {'good' if found.files_good else 'DAMAGED: deploy again'}")
    typer.echo(f"  signature {signature}")


def history(
    target: options.TargetName,
    board: options.BoardAddress = None,
    project: options.Folder = Path(),
    ssh_config: options.SshConfig = None,
    app: options.AppName = None,
    as_json: options.Json = False,
) -> None:
    """Show what was deployed and rolled back on a board, oldest first."""
    from edgeopt.deploy import read_history
    from edgeopt.trial import ROOT

    visit = _visit(target, board, project, ssh_config, app)
    live = visit.connect()
    try:
        entries = read_history(live, visit.app, root=ROOT)
    finally:
        live.close()
    if as_json:
        options.print_document({"history": [each.model_dump(mode="json") for each in entries]})
        return
    for each in entries:
        typer.echo(f"{each.time:%Y-%m-%d %H:%M:%S}  {each.action:<9} {each.digest[:12]}")


def rollback(
    target: options.TargetName,
    board: options.BoardAddress = None,
    project: options.Folder = Path(),
    ssh_config: options.SshConfig = None,
    app: options.AppName = None,
    wait: options.Wait = None,
) -> None:
    """Make the previous release current again; a second rollback undoes the first."""
    from edgeopt.board.lease import hold
    from edgeopt.deploy import rollback_release
    from edgeopt.pipeline import LEASE_SECONDS
    from edgeopt.trial import ROOT

    patience = read_wait(wait)
    visit = _visit(target, board, project, ssh_config, app)
    live = visit.connect()
    try:
        owner = f"edgeopt rollback {visit.app}"
        holding = hold(
            live, ROOT, owner=owner, seconds=LEASE_SECONDS, wait=patience, waiting=tell_wait
        )
        with holding as lease:
            found = rollback_release(lease.board, visit.app, root=ROOT, allowed=visit.allowed)
    finally:
        live.close()
    typer.echo(f"current is {found.current[:12]}, previous is {found.previous[:12]}")


def _visit(
    target: str, board: str | None, project: Path, ssh_config: Path | None, app: str | None
) -> Visit:
    request = Request(target=target, project=project, board=board, ssh_config=ssh_config)
    return make_visit(request, app)


def report(
    target: options.TargetName,
    project: options.Folder = Path(),
    html: Annotated[Path | None, typer.Option("--html", help="Write it as one page here.")] = None,
    as_json: options.Json = False,
) -> None:
    """Show the report of the last deploy again."""
    from pydantic import ValidationError

    from edgeopt.artifact import Report
    from edgeopt.report import format_html

    path = report_folder(project) / f"{PurePosixPath(target).stem}.json"
    try:
        found = Report.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no report for {target!r} in {project.resolve()}",
            fix=f"edgeopt deploy --target {target}",
        ) from error
    except ValidationError as error:
        raise ConfigError(
            f"{path} is not a report",
            why=str(error.errors()[0]["msg"]),
            fix=f"make a new one: edgeopt deploy --target {target}",
        ) from error
    if html is not None:
        write_output(html, format_html(found))
    _print_report(found, as_json=as_json)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(deploy)
    for command in (status, history, rollback, report):
        app.command()(command)
