"""edgeopt fit and diff: the compressed model as a file, and what tells two plans apart."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli import options
from edgeopt.cli.places import check_new, new_folder
from edgeopt.cli.planning import candidates_shown
from edgeopt.cli.request import Order, Request, make_order, started

if TYPE_CHECKING:
    from edgeopt.artifact import Choice
    from edgeopt.compress.record import CutDifference, Difference, FitRecord
    from edgeopt.pipeline import Fitted

#: What a record says of every weight.
_LONG = {"plan", "sizes", "entries", "ledger"}


def fit(
    target: options.TargetName,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the model.")],
    model: options.ModelSpec = None,
    profile: options.ProfileName = None,
    ram: options.Ram = None,
    flash: options.Flash = None,
    max_drop: options.MaxDrop = None,
    shape: options.Shapes = None,
    value: options.Values = None,
    project: options.Folder = Path(),
    replay: Annotated[
        Path | None, typer.Option("--plan", help="Apply the plan of an earlier fit instead.")
    ] = None,
    fresh: options.Fresh = False,
    trim_vocabulary: options.TrimVocabulary = None,
    prune: options.Prune = None,
    effort: options.EffortName = "standard",
    as_json: options.Json = False,
) -> None:
    """Choose the plan and write the compressed ONNX model with it; nothing is compiled."""
    check_new(output)
    request = Request(
        target=target,
        project=project,
        model=model,
        profile=profile,
        ram=ram,
        flash=flash,
        max_drop=max_drop,
        shapes=shape or (),
        values=value or (),
        fresh=fresh,
        trim_vocabulary=trim_vocabulary,
        prune=prune,
        effort=effort,
        on_board=False,
    )
    found, record = _fit(make_order(request), replay)
    from edgeopt.compress import Stopped
    from edgeopt.compress.record import FILE

    with new_folder(output):
        shutil.copy2(found.fit.model.path, output / "model.onnx")
        (output / FILE).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        if found.vocabulary is not None:
            shutil.copy2(found.vocabulary.tokenizer, output / "tokenizer.json")
    if not record.finished:
        typer.echo(f"{_describe(record)}\nwrote {output}", err=True)
        raise Stopped(found.fit)
    if as_json:
        options.print_document({"fit": record.model_dump(mode="json")})
        return
    typer.echo(_describe(record))
    typer.echo(f"wrote {output} (model.onnx runs in any runtime)", err=True)


def _fit(order: Order, replay: Path | None) -> "tuple[Fitted, FitRecord]":
    from edgeopt.fitting import draw_ledger
    from edgeopt.pipeline import fit_model

    earlier = _read_record(replay) if replay is not None else None
    with started(order) as run, candidates_shown():
        found = fit_model(run, earlier.plan if earlier else None)
    # What reads the model has begun long before all that this needs is imported.
    from edgeopt.compress.record import record_fit

    # What is left after cuts has weights of other shapes: the report of a deploy has them.
    lines = () if found.fit.plan.cuts else draw_ledger(order.job, found.fit, found.source)
    record = record_fit(found.fit, found.source, order.job.target.name, lines)
    if earlier is not None and earlier.result != record.result:
        typer.echo(
            "warning: the model is not the one that this plan was made for before: "
            f"{record.result[:12]} instead of {earlier.result[:12]}",
            err=True,
        )
    return found, record


def _read_record(replay: Path) -> "FitRecord":
    from edgeopt.compress.record import read_record

    return read_record(replay)


def diff(
    first: Annotated[Path, typer.Argument(help="Folder that edgeopt fit wrote, or its fit.json.")],
    second: Annotated[Path, typer.Argument(help="The other one.")],
    as_json: options.Json = False,
) -> None:
    """Show what two plans do differently, weight by weight, and what that costs."""
    from edgeopt.compress.record import compare_cuts, compare_records, read_record

    one, other = read_record(first), read_record(second)
    found, cuts = compare_records(one, other), compare_cuts(one, other)
    if as_json:
        options.print_document(
            {
                "first": one.model_dump(mode="json", exclude=_LONG),
                "second": other.model_dump(mode="json", exclude=_LONG),
                "weights": [each.model_dump(mode="json") for each in found],
                "cuts": [each.model_dump(mode="json") for each in cuts],
            }
        )
        return
    typer.echo(_format_difference(one, other, found))
    if cuts:
        typer.echo(_format_cuts(cuts))


def _describe(record: "FitRecord") -> str:
    from edgeopt.job import plan_title
    from edgeopt.units import format_bytes, format_figure

    return (
        f"{'' if record.finished else 'UNFINISHED: '}{plan_title(record.plan)} for "
        f"{record.target}: flash {format_bytes(record.flash)}, "
        f"peak memory {format_bytes(record.peak)}, "
        f"accuracy drop {format_figure(record.drop, 'fraction')}"
    )


def _format_difference(
    first: "FitRecord", second: "FitRecord", found: "tuple[Difference, ...]"
) -> str:
    from edgeopt.job import plan_title
    from edgeopt.report import format_columns
    from edgeopt.units import format_bytes, format_figure

    def metric(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    rows = [
        ("", "first", "second"),
        ("plan", plan_title(first.plan), plan_title(second.plan)),
        ("target", first.target, second.target),
        ("flash", format_bytes(first.flash), format_bytes(second.flash)),
        ("peak memory", format_bytes(first.peak), format_bytes(second.peak)),
        ("metric", metric(first.accuracy), metric(second.accuracy)),
        ("drop", format_figure(first.drop, "fraction"), format_figure(second.drop, "fraction")),
    ]
    lines = [format_columns(rows, indent=""), ""]
    if not found:
        return "\n".join([*lines, "every weight has the same form in both"])
    weights = [("weight", "first", "bytes", "second", "bytes")]
    weights += [
        (
            each.weight,
            _form(each.first),
            format_figure(each.first_bytes, "bytes"),
            _form(each.second),
            format_figure(each.second_bytes, "bytes"),
        )
        for each in found
    ]
    return "\n".join([*lines, format_columns(weights, indent="")])


def _format_cuts(cuts: "tuple[CutDifference, ...]") -> str:
    from edgeopt.report import format_columns

    def units(count: int | None) -> str:
        return "all" if count is None else str(count)

    rows = [("units left of", "first", "second", "in both")]
    rows += [(each.group, units(each.first), units(each.second), _shared(each)) for each in cuts]
    return "\n" + format_columns(rows, indent="")


def _shared(each: "CutDifference") -> str:
    return "-" if each.both is None else str(each.both)


def _form(choice: "Choice | None") -> str:
    if choice is None:
        return "as it is"
    return choice.title


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(fit)
    app.command()(diff)
