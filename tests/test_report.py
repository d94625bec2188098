import re
from html.parser import HTMLParser

import pytest

from edgeopt.artifact import Report
from edgeopt.report import format_columns, format_html, format_table, format_verdict
from edgeopt.surroundings import Energy
from tests.samples import check, measurement, report


def test_the_table_shows_every_limit_with_its_verdict() -> None:
    lines = format_table(report()).splitlines()
    flash = next(line for line in lines if line.strip().startswith("flash"))
    peak = next(line for line in lines if line.strip().startswith("peak memory"))
    assert flash.split()[-1] == "met"
    assert "16 MB" in flash
    assert peak.endswith("NOT MET")
    assert "-7.5 MB" in peak


def test_the_table_says_in_its_first_line_that_figures_are_emulated() -> None:
    assert "instructions executed, not time" in format_table(report()).splitlines()[0]


def test_an_emulated_board_never_shows_milliseconds_of_a_device() -> None:
    assert not re.search(r"\d (ms|us|s)\b", format_table(report()))


def test_a_time_limit_is_not_judged_by_an_emulated_board() -> None:
    unseen = check("latency p95", None, 30.0, "ms").model_copy(update={"predicted": None})
    assert format_verdict(unseen, "emulated") == "not judged (emulated)"
    assert format_verdict(unseen, "board") == "not measured"


DRAWN = Energy(
    idle_uw=2_000_000, drawn_uj=10_000_000, duration_ns=2_000_000_000, inferences=100, readings=21
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "emulated"}, "not measured: an emulated board draws nothing"),
        ({}, "not measured: the board has no power sensor"),
        ({"sensor": "ina219"}, "not measured: ina219 did not answer all along"),
        (
            {"sensor": "ina219", "energy": DRAWN},
            "100 mJ per inference, 60 mJ of it above the 2 W of rest "
            "(ina219, 21 readings in 2.0 s)",
        ),
    ],
)
def test_energy_is_what_a_sensor_showed_or_is_said_to_be_not_measured(
    changes: dict[str, object], words: str
) -> None:
    seen = measurement().model_copy(update={"kind": "board", **changes})
    row = report().rows[0].model_copy(update={"measurement": seen})
    made = report().model_copy(update={"rows": (row,)})
    subject = "energy of float16" if seen.energy else "energy"
    assert f"{subject}: {words}" in format_table(made).splitlines()
    assert f"<p>{subject}: {words}</p>" in format_html(made)


def test_reaching_a_limit_exactly_is_within_it() -> None:
    assert check("flash", 5.0, 5.0).met is True
    assert check("flash", 5.1, 5.0).met is False


def test_a_refused_release_says_why() -> None:
    text = format_table(report(kept=False))
    assert "not kept: the budget is not met" in text


def test_columns_need_rows_of_one_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        format_columns([("a", "b"), ("c",)])


class Resources(HTMLParser):
    """Collects whatever a page would fetch, and the scripts in it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"script", "link", "img", "iframe"}:
            self.found.append(tag)
        self.found += [f"{name}={value}" for name, value in attrs if name in {"src", "href"}]


def test_the_page_needs_nothing_outside_itself() -> None:
    page = format_html(report())
    reader = Resources()
    reader.feed(page)
    assert reader.found == []
    assert page.count("<svg") == 3


def test_the_resource_check_sees_a_script() -> None:
    reader = Resources()
    reader.feed("<script src='x'></script>")
    assert reader.found == ["script", "src=x"]


def test_names_are_escaped_in_the_page() -> None:
    page = format_html(report(app="<b>&'"))
    assert "<b>&'" not in page
    assert "&lt;b&gt;" in page


def test_a_report_round_trips_through_json() -> None:
    made = report()
    assert Report.model_validate_json(made.model_dump_json()) == made
