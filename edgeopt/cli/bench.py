"""edgeopt bench: two models, or two plans of one, take turns on a board."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli import options
from edgeopt.cli.places import cache_folder
from edgeopt.cli.request import Request, make_order, read_wait, started
from edgeopt.cli.sidebyside import list_members
from edgeopt.errors import ConfigError, EdgeoptError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgeopt.artifact import Bundle
    from edgeopt.board import Board
    from edgeopt.rivals import Contest, Rival

_DIGEST = re.compile(r"[0-9a-f]{8,64}")


Pair = Annotated[
    tuple[str, str],
    typer.Option(
        "--ab",
        metavar="A B",
        help="Profiles, models (.onnx, module:factory) or digests of what was compiled here.",
    ),
]
Blocks = Annotated[int, typer.Option("--blocks", min=4, max=1000, help="Of launches A B B A.")]
Tolerance = Annotated[
    str, typer.Option("--tolerance", help="A difference that does not matter, like 1%.")
]
SelfTest = Annotated[
    bool, typer.Option("--self-test", help="First compare A with itself; twice the time.")
]
Pool = Annotated[
    str | None,
    typer.Option("--boards", help="On all of this kind, 'all' of edgeopt.toml or fleet.toml."),
]
Parallel = Annotated[
    int, typer.Option("--parallel", min=1, max=256, help="How many boards at once.")
]


def bench(
    target: options.TargetName,
    ab: Pair,
    model: options.ModelSpec = None,
    board: options.BoardAddress = None,
    shape: options.Shapes = None,
    value: options.Values = None,
    project: options.Folder = Path(),
    ssh_config: options.SshConfig = None,
    blocks: Blocks = 8,
    tolerance: Tolerance = "0%",
    self_test: SelfTest = False,
    boards: Pool = None,
    parallel: Parallel = 8,
    wait: options.Wait = None,
    as_json: options.Json = False,
) -> None:
    """Compare two models or plans in turns on a board: B is faster, slower, or inconclusive."""
    from edgeopt.rivals import Terms, compare_on_boards, compare_rivals

    terms = Terms(
        blocks=blocks,
        tolerance=_read_share(tolerance),
        self_test=self_test,
        wait=read_wait(wait),
    )
    request = Request(
        target=target,
        project=project,
        model=model,
        board=board,
        shapes=shape or (),
        values=value or (),
        ssh_config=ssh_config,
    )
    pool = None if boards is None else _connections(boards, _asked(ab[0], request))
    base, other = (_make_rival(each, request) for each in ab)
    if pool is not None:
        results = compare_on_boards(base, other, pool, terms=terms, parallel=parallel)
        raise typer.Exit(_print_all(results, as_json=as_json))
    order = make_order(_asked(ab[0], request))
    found = compare_rivals(base, other, order.connect, terms=terms)
    if as_json:
        options.print_document(found.model_dump(mode="json") | _verdicts(found))
    else:
        typer.echo(_format(found))


def _read_share(text: str) -> float:
    from edgeopt.units import parse_fraction

    try:
        return parse_fraction(text)
    except ValueError as error:
        raise ConfigError(
            f"--tolerance {text!r} cannot be read", why=str(error), fix="write it like 1%"
        ) from error


def _is_digest(name: str) -> bool:
    return _DIGEST.fullmatch(name) is not None


def _asked(name: str, request: Request) -> Request:
    """Return the request for one contender: its model, or its profile."""
    if _is_digest(name):
        return request
    if name.endswith(".onnx") or ":" in name:
        return replace(request, model=name)
    return replace(request, profile=name)


def _make_rival(name: str, request: Request) -> "Rival":
    from edgeopt.rivals import Rival

    bundle = _find_bundle(name) if _is_digest(name) else None
    with started(make_order(_asked(name, request))) as run:
        return Rival(name, run, bundle)


def _find_bundle(digest: str) -> "Bundle":
    """Find what was compiled here by the beginning of its digest."""
    from edgeopt.artifact import Bundle
    from edgeopt.store import Store

    found = {
        each.digest: each
        for each in Store(cache_folder()).every(
            "compile", Bundle, where=lambda each: each.digest.startswith(digest)
        )
    }
    if len(found) == 1:
        return next(iter(found.values()))
    raise ConfigError(
        f"{digest} is {'no' if not found else 'more than one'} bundle that was compiled here",
        why="a release on a board has no sources: it is taken from the cache of this machine",
        fix="give more of the digest" if found else "name its profile or its model",
    )


def _connections(boards: str, request: Request) -> "dict[str, Callable[[], Board]]":
    """Return how each board of the request's target is reached."""
    if request.board is not None:
        raise ConfigError("--board and --boards exclude each other", fix="leave one of them out")
    members = [
        each
        for each in list_members(boards, request.project.resolve())
        if each.target == request.target
    ]
    if not members:
        raise ConfigError(
            f"--boards {boards} has no board of the kind {request.target}",
            fix=f"name another target, or add a board of it to {boards}",
        )
    return {
        each.label: make_order(replace(request, board=each.address)).connect for each in members
    }


def _print_all(found: "Mapping[str, Contest | EdgeoptError]", *, as_json: bool) -> int:
    """Print one comparison after the other; return the exit code of the worst."""
    failed = {name: each for name, each in found.items() if isinstance(each, EdgeoptError)}
    rows = {name: each for name, each in found.items() if not isinstance(each, EdgeoptError)}
    if as_json:
        document = {
            name: each.model_dump(mode="json") | _verdicts(each) for name, each in rows.items()
        }
        errors = {name: {"error": each.what, "why": each.why} for name, each in failed.items()}
        options.print_document({"boards": {name: (document | errors)[name] for name in found}})
    else:
        for each in rows.values():
            typer.echo(_format(each))
        for name, error in failed.items():
            typer.echo(f"{name}: {error}", err=True)
    return max((each.exit_code for each in failed.values()), default=0)


def _verdicts(found: "Contest") -> dict[str, str]:
    return {"verdict": found.comparison.verdict}


def _format(found: "Contest") -> str:
    from edgeopt.report import MEANING

    lines = [
        f"{found.other} ({found.other_digest[:12]}) against {found.base} "
        f"({found.base_digest[:12]}) on {found.board} ({MEANING[found.kind]})"
    ]
    if found.self_test is not None:
        lines.append(f"  {found.base} against itself: {found.self_test}")
    lines.append(f"  {found.comparison}")
    return "\n".join(lines)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command()(bench)
