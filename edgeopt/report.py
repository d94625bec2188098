"""A report as people read it: a table on the terminal, one self-contained HTML page."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from statistics import median

from edgeopt.artifact import Check, Line, Measurement, Report, Row, Tried
from edgeopt.board import Kind
from edgeopt.chart import draw_latencies, draw_memory, draw_plans
from edgeopt.cut import Pruning
from edgeopt.units import format_bytes, format_figure

#: What a figure of each kind is, for the heading of every table that shows one.
MEANING: dict[Kind, str] = {
    "native": "measured on this machine",
    "emulated": "emulated: figures are instructions executed, not time",
    "board": "measured on the board",
}


def format_verdict(check: Check, kind: Kind) -> str:
    """Say whether a limit holds; a limit on time cannot be judged by an emulated board."""
    if check.met is not None:
        return "met" if check.met else "NOT MET"
    if check.limit is None:
        return "no limit"
    judged = kind != "emulated" or check.unit != "ms"
    return "not measured" if judged else "not judged (emulated)"


def format_columns(rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Align rows under their first one: text to the left, figures to the right.

    >>> print(format_columns([("name", "size"), ("a", "1"), ("bb", "10")], indent=""))
    name  size
    a        1
    bb      10
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def _check_cells(check: Check, kind: Kind) -> tuple[str, ...]:
    figure = check.measured if check.measured is not None else check.predicted
    margin = None if check.limit is None or figure is None else check.limit - figure
    shown = (check.predicted, check.measured, check.limit, margin)
    cells = (format_figure(each, check.unit) for each in shown)
    return (check.name, *cells, format_verdict(check, kind))


def format_checks(report: Report) -> str:
    """Print every limit of the budget: predicted, measured, limit, margin and verdict."""
    head = ("budget", "predicted", "measured", "limit", "margin", "verdict")
    return format_columns([head, *(_check_cells(each, report.kind) for each in report.checks)])


def median_ns(measurement: Measurement) -> float:
    """Return the median of the timed inferences, in ns (instructions when emulated)."""
    return float(median(measurement.samples_ns))


def _row_heads(kind: Kind) -> tuple[str, ...]:
    unit = "instructions" if kind == "emulated" else "latency p50"
    memory = ("flash", "predicted peak", "peak", "anonymous")
    return ("plan", *memory, unit, "accuracy", "on the board", "parity")


def _row_cells(row: Row, kind: Kind) -> tuple[str, ...]:
    seen, parity = row.measurement, row.parity
    per_inference = "-"
    if seen is not None:
        unit = "instructions" if kind == "emulated" else "ms"
        scale = 1.0 if kind == "emulated" else 1e-6
        per_inference = format_figure(median_ns(seen) * scale, unit)
    return (
        f"{row.plan} ({row.role})",
        format_bytes(row.footprint.flash),
        format_bytes(row.footprint.peak),
        format_bytes(seen.memory.peak) if seen else "-",
        format_bytes(seen.memory.anonymous) if seen else "-",
        per_inference,
        format_figure(row.metric_host, "fraction"),
        _metric_on_board(row),
        f"{parity.max_rel:.1e}" if parity else "-",
    )


def _metric_on_board(row: Row) -> str:
    parity = row.parity
    if parity is None or parity.metric_board is None or parity.metric_host is None:
        return "-"
    board = round(parity.metric_board * parity.metric_samples)
    host = round(parity.metric_host * parity.metric_samples)
    return f"{board}/{parity.metric_samples} (host {host})"


def format_rows(report: Report) -> str:
    """Print each plan that went to the board, beside the model it came from."""
    cells = [_row_cells(each, report.kind) for each in report.rows]
    return format_columns([_row_heads(report.kind), *cells])


def format_tried(tried: Sequence[Tried]) -> str:
    """Print every plan that the fitter looked at, and why it was passed over."""
    rows = [("plan", "flash", "peak memory", "metric", "drop", "breaks")]
    for each in tried:
        metric = "-" if each.metric is None else f"{each.metric:.4f}"
        cells = (each.plan, format_bytes(each.flash), format_bytes(each.peak), metric)
        rows.append((*cells, format_figure(each.drop, "fraction"), "; ".join(each.broken) or "-"))
    return format_columns(rows, indent="")


def describe_pruning(pruning: Pruning) -> str:
    """Say in a sentence what pruning left of a model."""
    share = pruning.flops_after / pruning.flops_before
    counts = (pruning.flops_before, pruning.flops_after)
    operations = " -> ".join(f"{each / 1e6:.3g}" for each in counts)
    sizes = " -> ".join(format_bytes(each) for each in (pruning.bytes_before, pruning.bytes_after))
    return f"pruned: {operations} MFLOP ({share:.1%}), weights {sizes}"


def _cut_rows(pruning: Pruning) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("cut out of", "what", "units", "now", "before", "after", "harm")
    ]
    for each in pruning.entries:
        counts = (str(each.units), str(len(each.cut.kept)))
        sizes = (format_bytes(each.before), format_bytes(each.after))
        harm = "-" if each.harm is None else f"{each.harm:.1e}"
        rows.append((each.cut.group, each.kind, *counts, *sizes, harm))
    return rows


def format_cuts(pruning: Pruning) -> str:
    """Print what was cut out of each group of units, and how far that alone moves the outputs."""
    return format_columns(_cut_rows(pruning), indent="")


def _ledger_rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """List each weight with what was done to it; times are predicted ones of its nodes."""
    rows: list[tuple[str, ...]] = [
        ("weight", "form", "before", "now", "time before", "time now", "measured", "harm", "why")
    ]
    for each in lines:
        times = (each.predicted_before, each.predicted_after, each.measured)
        shown = ("-" if time is None else f"{time / 1e3:.1f} us" for time in times)
        harm = "-" if each.harm is None else f"{each.harm:.1e}"
        sizes = (format_bytes(each.before), format_bytes(each.after))
        rows.append((each.weight, each.form, *sizes, *shown, harm, each.reason))
    return rows


def format_ledger(lines: Sequence[Line]) -> str:
    """Print what was done to each weight, what that costs, and why."""
    return format_columns(_ledger_rows(lines), indent="")


def describe_energy(measurement: Measurement) -> str:
    """Say what an inference takes out of the supply, or why that was not measured."""
    energy = measurement.energy
    if measurement.kind == "emulated":
        return "not measured: an emulated board draws nothing"
    if not measurement.sensor:
        return "not measured: the board has no power sensor"
    if energy is None:
        return f"not measured: {measurement.sensor} did not answer all along"
    figures = (1e3 * energy.joules, 1e3 * energy.joules_above_idle)
    whole, above = (f"{figure:.3g} mJ" for figure in figures)
    return (
        f"{whole} per inference, {above} of it above the {energy.idle_uw / 1e6:.3g} W of rest "
        f"({measurement.sensor}, {energy.readings} readings in {energy.duration_ns / 1e9:.1f} s)"
    )


def _energies(report: Report) -> list[str]:
    """Describe the energy of every plan that was measured, or once why there is none."""
    seen = [(row, row.measurement) for row in report.rows if row.measurement is not None]
    if any(measurement.energy is not None for _, measurement in seen):
        return [f"energy of {row.plan}: {describe_energy(each)}" for row, each in seen]
    return [f"energy: {text}" for text in dict.fromkeys(describe_energy(each) for _, each in seen)]


def format_table(report: Report) -> str:
    """Print the whole report for a terminal."""
    title = f"{report.app} on {report.target}, {report.board} ({MEANING[report.kind]})"
    if report.kept:
        ending = f"kept: release {report.digest[:12]} is current"
    else:
        ending = f"not kept: {report.failure}"
    parts = [title, format_checks(report), format_rows(report), ending]
    parts += [f"note: {row.plan}: {row.note}" for row in report.rows if row.note]
    parts += _energies(report)
    if report.pruning:
        parts.append(describe_pruning(report.pruning))
    if report.vocabulary:
        parts.append(f"{report.vocabulary}: feed it with the release's tokenizer.json")
    if report.judged_by:
        parts.append(f"note: {report.judged_by}")
    parts += [f"warning: {each}" for each in report.warnings]
    if report.caveat:
        parts.append(f"emulation: {report.caveat}")
    if report.next_command:
        parts.append(f"next: {report.next_command}")
    return "\n\n".join(parts[:3]) + "\n\n" + "\n".join(parts[3:])


def format_stages(report: Report) -> Iterable[tuple[str, str, str, str]]:
    """Yield what each stage did, whether it was found in the cache, and its seconds."""
    for stage in report.stages:
        source = "from the cache" if stage.cached else "made"
        yield stage.name, stage.detail, source, f"{stage.seconds:.1f} s"


def format_html(report: Report) -> str:
    """Return one page with no reference to anything outside itself."""
    from jinja2 import Environment

    text = (files("edgeopt") / "report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    return page.render(
        report=report,
        meaning=MEANING[report.kind],
        checks=[_check_cells(each, report.kind) for each in report.checks],
        heads=_row_heads(report.kind),
        rows=[_row_cells(each, report.kind) for each in report.rows],
        stages=list(format_stages(report)),
        energies=_energies(report),
        latencies=draw_latencies(report),
        memory=draw_memory(report),
        ledger=_ledger_rows(report.ledger) if report.ledger else [],
        pruning=describe_pruning(report.pruning) if report.pruning else "",
        cuts=_cut_rows(report.pruning) if report.pruning else [],
        plans=draw_plans(report.tried),
        data=report.model_dump_json(indent=1),
    )
