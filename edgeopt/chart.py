"""Charts of a report as inline SVG: text and shapes only, readable without a script."""

from collections.abc import Sequence
from html import escape

from edgeopt.artifact import Report, Row, Tried
from edgeopt.units import format_bytes, format_millis

_WIDTH = 860
_LEFT = 190
_DOT, _PASSED_OVER = "#1f5a85", "#8a8a8a"
#: One colour per part of memory, the same in every bar and in the legend.
_PARTS = {
    "weights": "#1f5a85",
    "arena": "#c9a227",
    "runtime": "#8a8a8a",
    "file-backed (evictable)": "#5b9bc8",
    "anonymous": "#e0c36a",
    "released before the end": "#cccccc",
}


def _svg(height: int, title: str, shapes: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12">'
    )
    return head + "".join(shapes) + "</svg>"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _bar(x: float, y: float, width: float, colour: str, title: str) -> str:
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="16" '
    return shape + f'fill="{colour}"><title>{escape(title)}</title></rect>'


def _dot(x: float, y: float, colour: str, title: str) -> str:
    shape = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity="0.6">'
    return shape + f"<title>{escape(title)}</title></circle>"


def _axis(y: float) -> str:
    return f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - 20}" stroke="#999" stroke-width="1"/>'


def _span(figures: Sequence[float]) -> tuple[float, float]:
    low, high = min(figures), max(figures)
    pad = (high - low) * 0.08 or max(abs(high) * 0.01, 1e-9)
    return low - pad, high + pad


def _place(figure: float, span: tuple[float, float]) -> float:
    return _LEFT + (figure - span[0]) / (span[1] - span[0]) * (_WIDTH - _LEFT - 20)


def draw_latencies(report: Report) -> str:
    """Draw every timed inference of every plan on one axis from zero."""
    seen = [row for row in report.rows if row.measurement]
    if not seen:
        return ""
    emulated = report.kind == "emulated"

    def name(ns: float) -> str:
        return f"{ns / 1e6:,.2f} M instructions" if emulated else format_millis(ns / 1e6)

    highest = max(max(row.measurement.samples_ns) for row in seen if row.measurement)
    span = (0.0, highest * 1.05)
    shapes = []
    for index, row in enumerate(seen):
        y = 20 + 30 * index
        shapes.append(_text(0, y + 4, row.plan))
        samples = row.measurement.samples_ns if row.measurement else ()
        shapes += [_axis(y), *(_dot(_place(ns, span), y, _DOT, name(ns)) for ns in samples)]
    y = 20 + 30 * len(seen)
    shapes += [_text(_LEFT, y, "0"), _text(_place(highest, span), y, name(highest), "end")]
    return _svg(y + 10, "duration of every inference", shapes)


def _memory_parts(row: Row) -> list[tuple[str, list[tuple[str, int]]]]:
    need = row.footprint
    bars = [
        (
            f"{row.plan}, predicted",
            [
                ("weights", need.weights_resident),
                ("arena", need.arena),
                ("runtime", need.runtime),
            ],
        )
    ]
    if row.measurement:
        seen = row.measurement.memory
        rest = max(seen.peak - seen.anonymous - seen.file_backed, 0)
        parts = [("file-backed (evictable)", seen.file_backed), ("anonymous", seen.anonymous)]
        bars.append((f"{row.plan}, measured", [*parts, ("released before the end", rest)]))
    return bars


def draw_memory(report: Report) -> str:
    """Draw predicted and measured peak memory by what it holds."""
    bars = [bar for row in report.rows for bar in _memory_parts(row)]
    if not bars:
        return ""
    highest = max(sum(size for _, size in parts) for _, parts in bars)
    scale = (_WIDTH - _LEFT - 90) / max(highest, 1)
    shapes = []
    for index, (label, parts) in enumerate(bars):
        x, y = float(_LEFT), 8.0 + 24 * index
        shapes.append(_text(0, y + 12, label))
        for part, size in parts:
            title = f"{part}: {format_bytes(size)}"
            shapes.append(_bar(x, y, size * scale, _PARTS[part], title))
            x += size * scale
        total = sum(size for _, size in parts)
        shapes.append(_text(x + 6, y + 12, format_bytes(total)))
    x, y = 0.0, 20.0 + 24 * len(bars)
    for part, colour in _PARTS.items():
        shapes += [_bar(x, y, 12, colour, part), _text(x + 18, y + 12, part)]
        x += 50 + 6.5 * len(part)
    return _svg(int(y) + 24, "peak memory", shapes)


def draw_plans(plans: Sequence[Tried]) -> str:
    """Draw size against accuracy for every plan tried."""
    tried = [each for each in plans if each.metric is not None]
    if not tried:
        return ""
    across = _span([float(each.flash) for each in tried])
    up = _span([each.metric or 0.0 for each in tried])
    shapes = [_axis(205)]
    for each in tried:
        metric = each.metric or 0.0
        x = _place(each.flash, across)
        y = 200 - (metric - up[0]) / (up[1] - up[0]) * 180
        title = f"{each.plan}: {format_bytes(each.flash)}, {metric:.4f}"
        colour = _PASSED_OVER if each.broken else _DOT
        shapes += [_dot(x, y, colour, title), _text(x, y - 8, each.plan, "middle")]
    shapes += [
        _text(0, 20, f"metric {up[1]:.3f}"),
        _text(0, 200, f"metric {up[0]:.3f}"),
        _text(_LEFT, 222, format_bytes(across[0])),
        _text(_WIDTH - 20, 222, f"flash {format_bytes(across[1])}", "end"),
    ]
    return _svg(230, "size and accuracy of every plan tried", shapes)
