"""edgeopt plan and compile: what would be deployed, without a board."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli import options
from edgeopt.cli.places import check_new, check_output, new_folder, write_output
from edgeopt.cli.request import Order, Request, make_order, started
from edgeopt.errors import BudgetExceeded, ConfigError, Interrupted
from edgeopt.units import format_figure

if TYPE_CHECKING:
    from edgeopt.artifact import Line
    from edgeopt.building import Built
    from edgeopt.compress.sparsity import Dead


def plan(
    target: options.SomeTarget = None,
    model: options.ModelSpec = None,
    profile: options.ProfileName = None,
    ram: options.Ram = None,
    flash: options.Flash = None,
    latency: options.Latency = None,
    max_drop: options.MaxDrop = None,
    shape: options.Shapes = None,
    value: options.Values = None,
    project: options.Folder = Path(),
    every: options.Every = False,
    front: options.Front = None,
    svg: options.Svg = None,
    layers: options.Layers = False,
    targets: Annotated[
        str | None, typer.Option("--targets", help="Compare kinds of device: rpi4,rpi5,imx8mp.")
    ] = None,
    fresh: options.Fresh = False,
    allow_unscheduled: options.Unscheduled = False,
    trim_vocabulary: options.TrimVocabulary = None,
    prune: options.Prune = None,
    effort: options.EffortName = "standard",
    as_json: options.Json = False,
) -> None:
    """Show what deploy would choose and what it would need; nothing is sent anywhere."""
    names = _named(target, targets)
    request = Request(
        target=names[0],
        project=project,
        model=model,
        profile=profile,
        ram=ram,
        flash=flash,
        latency=latency,
        max_drop=max_drop,
        shapes=shape or (),
        values=value or (),
        fresh=fresh,
        allow_unscheduled=allow_unscheduled,
        trim_vocabulary=trim_vocabulary,
        prune=prune,
        effort=effort,
        on_board=False,
    )
    check_output(svg)
    if targets is not None:
        _compare_targets([replace(request, target=name) for name in names], as_json=as_json)
        return
    order = make_order(request)
    _note_unknown_times(order)
    if every or front is not None:
        _show_survey(order, front, svg=svg, as_json=as_json)
        return
    _show_plan(order, layers=layers, as_json=as_json)


def _show_plan(order: Order, *, layers: bool, as_json: bool) -> None:
    """Build the plan and show it."""
    from edgeopt.fitting import describe_judging, draw_ledger

    built, dead = _build(order)
    lines = draw_ledger(order.job, built.fit, built.source)
    if as_json:
        _print_built(built, lines)
        return
    typer.echo(_format_built(built, dead, lines if layers else ()))
    if judged := describe_judging(built.fit, order.job):
        typer.echo(f"note: {judged}", err=True)
    typer.echo(f"next: edgeopt deploy --target {order.job.target.name}", err=True)


def _note_unknown_times(order: Order) -> None:
    from edgeopt.learning import known_times

    job = order.job
    if job.profile.budget.latency is None or job.pace is not None:
        return
    if known_times(job) is None:
        typer.echo("note: no deploy from here measured such a board, so no time is known", err=True)


def _print_built(built: "Built", ledger: "tuple[Line, ...]") -> None:
    facts = {
        "fit": built.fit,
        "bundle": built.bundle,
        "vocabulary": built.vocabulary,
        "pruning": built.pruning,
    }
    document = {name: each.model_dump(mode="json") for name, each in facts.items() if each}
    lines = [each.model_dump(mode="json") for each in ledger]
    options.print_document({**document, "ledger": lines})


def _named(target: str | None, targets: str | None) -> list[str]:
    """List the targets that were named, by one of the two options."""
    names = [name.strip() for name in (targets or target or "").split(",") if name.strip()]
    if not names or (target is not None and targets is not None):
        raise ConfigError(
            "plan needs a target",
            why="both --target and --targets were given" if names else "none was named",
            fix="name one (--target rpi4), or several to compare (--targets rpi4,rpi5)",
        )
    return names


def _compare_targets(requests: list[Request], *, as_json: bool) -> None:
    """Show what deploy would choose on each target; a budget that one cannot meet is a row too."""
    from edgeopt.errors import BudgetExceeded
    from edgeopt.job import plan_title
    from edgeopt.learning import predict_time
    from edgeopt.pipeline import plan as run_plan
    from edgeopt.report import format_columns
    from edgeopt.units import format_bytes, format_millis

    # All of them are decoded before the first one starts.
    orders = [make_order(each) for each in requests]
    rows = [("target", "plan", "flash", "peak memory", "drop", "time of a core, predicted")]
    documents: list[dict[str, object]] = []
    for order in orders:
        name = order.job.target.name
        try:
            with started(order) as run:
                built = run_plan(run)
        except BudgetExceeded as error:
            documents.append({"target": name, "plan": None, "why": f"{error.what}: {error.why}"})
            rows.append((name, f"none: {error.what}", "-", "-", "-", "-"))
            continue
        need, chosen = built.bundle.footprint, built.fit.chosen
        time = predict_time(order.job, built.fit.model, built.source.sha256) / 1e6
        drop = format_figure(chosen.drop, "fraction")
        sizes = (format_bytes(need.flash), format_bytes(need.peak))
        rows.append((name, plan_title(chosen.plan), *sizes, drop, format_millis(time)))
        facts = {"flash": need.flash, "peak": need.peak, "drop": chosen.drop}
        documents.append({"target": name, "plan": chosen.plan.name, **facts, "predicted_ms": time})
    if as_json:
        options.print_document({"targets": documents})
    else:
        typer.echo(format_columns(rows, indent=""))


def _show_survey(order: Order, front: int | None, *, svg: Path | None, as_json: bool) -> None:
    """Show every whole plan, or mixtures of so many sizes."""
    from edgeopt.chart import draw_plans
    from edgeopt.pipeline import survey_front, survey_plans
    from edgeopt.report import format_tried

    with started(order) as run:
        tried = survey_plans(run) if front is None else survey_front(run, front)
    if svg is not None:
        write_output(svg, draw_plans(tried))
    if as_json:
        options.print_document({"plans": [each.model_dump(mode="json") for each in tried]})
    else:
        typer.echo(format_tried(tried))


def compile_bundle(
    target: options.TargetName,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the bundle.")],
    model: options.ModelSpec = None,
    profile: options.ProfileName = None,
    ram: options.Ram = None,
    flash: options.Flash = None,
    max_drop: options.MaxDrop = None,
    shape: options.Shapes = None,
    value: options.Values = None,
    project: options.Folder = Path(),
    fresh: options.Fresh = False,
    allow_unscheduled: options.Unscheduled = False,
    trim_vocabulary: options.TrimVocabulary = None,
    prune: options.Prune = None,
    effort: options.EffortName = "standard",
) -> None:
    """Fit and compile, and write the files that would go to the board."""
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
        allow_unscheduled=allow_unscheduled,
        trim_vocabulary=trim_vocabulary,
        prune=prune,
        effort=effort,
        on_board=False,
    )
    built, dead = _build(make_order(request))
    _copy_bundle(built, output)
    typer.echo(_format_built(built, dead))
    typer.echo(f"wrote {output} (model.onnx is the compressed model, for any runtime)", err=True)


def _copy_bundle(built: "Built", output: Path) -> None:
    """Copy a bundle and its model to a new folder."""
    names = [*(each.name for each in built.bundle.files), "manifest.json"]
    with new_folder(output):
        for name in dict.fromkeys(names):
            shutil.copy2(built.bundle.path / name, output / name)
        shutil.copy2(built.fit.model.path, output / "model.onnx")


def _build(order: Order) -> "tuple[Built, tuple[Dead, ...]]":
    """Plan, and look for zeros in the model as it came that save nothing."""
    from edgeopt.compress.sparsity import find_dead
    from edgeopt.pipeline import plan as run_plan
    from edgeopt.prepare import prepare_model

    with started(order) as run, candidates_shown():
        built = run_plan(run)
        return built, find_dead(prepare_model(run), built.fit.plan)


def _format_dead(dead: "tuple[Dead, ...]") -> str:
    from edgeopt.units import format_bytes

    stored, least = (sum(each.sizes.dense for each in dead), sum(each.sizes.least for each in dead))
    sparse = sum(each.sizes.csr for each in dead)
    count = f"{len(dead)} weights" if len(dead) > 1 else repr(dead[0].weight)
    zeros = sum(each.zeros * each.sizes.dense for each in dead) / stored
    fix = "no kernel skips single zeros; --prune 50% cuts whole units"
    methods = sorted({each.method for each in dead if each.method})
    if methods:
        size = sum(each.blocks if each.method else each.sizes.dense for each in dead)
        fix = (
            f"{' and '.join(methods)} among the profile's methods would make it"
            f" {format_bytes(size)}"
        )
    return (
        f"warning: dead compression: {zeros:.0%} of the values of {count} are zero, and"
        f" they take {format_bytes(stored)} all the same (as CSR {format_bytes(sparse)}, at best"
        f" {format_bytes(least)}): {fix}"
    )


@contextmanager
def candidates_shown() -> Iterator[None]:
    """When no plan meets the budget, or it is stopped, show how near each one came."""
    try:
        yield
    except (BudgetExceeded, Interrupted) as error:
        # What raises these has imported all of this: until then it would only take time.
        from edgeopt.compress import Infeasible, Stopped
        from edgeopt.report import format_tried
        from edgeopt.verdict import tried_of

        if isinstance(error, Infeasible):
            typer.echo(format_tried(tried_of(error.candidates)), err=True)
        elif isinstance(error, Stopped):
            typer.echo(format_tried(tried_of(error.fit.candidates)), err=True)
        raise


def _format_built(built: "Built", dead: "tuple[Dead, ...]", ledger: "tuple[Line, ...]" = ()) -> str:
    from edgeopt.job import plan_title
    from edgeopt.report import describe_pruning, format_cuts, format_ledger, format_tried
    from edgeopt.units import format_bytes
    from edgeopt.verdict import tried_of

    need = built.bundle.footprint
    lines = [format_tried(tried_of(built.fit.candidates)), ""]
    if ledger and built.pruning:
        lines += [format_cuts(built.pruning), ""]
    if ledger:
        lines += [format_ledger(ledger), ""]
    lines += [
        f"chosen: {plan_title(built.fit.chosen.plan)}, bundle {built.bundle.digest[:12]}: "
        f"flash {format_bytes(need.flash)}, peak memory {format_bytes(need.peak)} "
        f"(weights {format_bytes(need.weights_resident)}, arena {format_bytes(need.arena)}, "
        f"runtime {format_bytes(need.runtime)})",
    ]
    if built.pruning:
        lines.append(describe_pruning(built.pruning))
    if built.vocabulary:
        lines.append(
            f"{built.vocabulary}: feed it with the bundle's tokenizer.json, "
            f"{format_bytes(built.vocabulary.size)} of its flash"
        )
    lines += [
        f"warning: {each.function} has no fast kernel and is {each.flops_share:.1%} of the "
        "arithmetic"
        for each in built.bundle.unscheduled
    ]
    lines += [_format_dead(dead)] if dead else []
    return "\n".join(lines)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(plan)
    app.command("compile")(compile_bundle)
