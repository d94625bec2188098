"""Quantities: what is written is what is meant, and nothing is meant without its unit."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from edgeopt import units
from edgeopt.units import WRITTEN, Bytes, Fraction, Hertz, Millis, Rate

KINDS = {
    "bytes": (Bytes, "64MB", 64_000_000),
    "millis": (Millis, "30ms", 30.0),
    "fraction": (Fraction, "1%", 0.01),
    "hertz": (Hertz, "1.8GHz", 1.8e9),
    "rate": (Rate, "2.8GB/s", 2.8e9),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantity_is_read_from_text_with_its_unit(kind: str) -> None:
    annotation, text, value = KINDS[kind]
    assert TypeAdapter(annotation).validate_python(text) == pytest.approx(value)


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_json_holds_plain_numbers(kind: str) -> None:
    annotation, _, value = KINDS[kind]
    assert TypeAdapter(annotation).validate_python(value) == value


@pytest.mark.parametrize("kind", KINDS)
def test_a_person_must_write_the_unit(kind: str) -> None:
    annotation, text, value = KINDS[kind]
    with pytest.raises(ValidationError, match=re.escape(f"with its unit, like {text!r}")):
        TypeAdapter(annotation).validate_python(value, context=WRITTEN)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "64",
        "64 parsecs",
        "-1MB",
        "MB",
        "1,5MB",
        "1e3MB",
        "٣MB",
        True,
        None,
        [],
        float("nan"),
        -1,
    ],
    ids=repr,
)
def test_what_is_no_quantity_is_refused(kind: str, wrong: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(KINDS[kind][0]).validate_python(wrong)


def test_decimal_and_binary_sizes_differ() -> None:
    assert units.parse_bytes("1MB") == 10**6
    assert units.parse_bytes("1MiB") == 2**20


def test_a_percentage_above_a_hundred_is_refused() -> None:
    assert units.parse_fraction("100%") == 1.0
    with pytest.raises(ValueError, match="not a percentage"):
        units.parse_fraction("101%")


@pytest.mark.parametrize("text", ["0GHz", "0MHz"])
def test_a_clock_that_stands_still_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="more than zero"):
        units.parse_hertz(text)


def test_the_schema_of_a_quantity_accepts_what_the_parser_accepts() -> None:
    class Model(BaseModel):
        size: Bytes

    described = Model.model_json_schema()["properties"]["size"]
    assert described["type"] == "string"
    for text in ("64MB", " 1.5 MiB ", *described["examples"]):
        assert re.search(described["pattern"], text)
        units.parse_bytes(text)
    for text in ("64", "64Mb", "1..5MB", "-1MB", "64MB/s"):
        assert not re.search(described["pattern"], text)


@given(st.integers(min_value=0, max_value=10**15))
def test_a_printed_size_is_close_to_the_size(size: int) -> None:
    assert units.parse_bytes(units.format_bytes(size)) == pytest.approx(size, rel=0.006)


@given(st.floats(min_value=1e-3, max_value=1e7))
def test_a_printed_duration_is_close_to_the_duration(milliseconds: float) -> None:
    text = units.format_millis(milliseconds)
    number, unit = text.split()
    assert float(number) * units._TIMES[unit] == pytest.approx(milliseconds, rel=0.006)


@given(st.floats(min_value=1e6, max_value=9e9))
def test_a_printed_clock_and_bandwidth_are_read_back(value: float) -> None:
    assert units.parse_hertz(units.format_hertz(value)) == pytest.approx(value, rel=1e-3)
    assert units.parse_rate(units.format_rate(value)) == pytest.approx(value, rel=1e-3)


@given(st.floats(min_value=0.0001, max_value=1))
def test_a_printed_fraction_is_read_back(fraction: float) -> None:
    assert units.parse_fraction(units.format_fraction(fraction)) == pytest.approx(
        fraction, rel=0.006
    )


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_a_validation_error(text: str) -> None:
    for annotation, _, _ in KINDS.values():
        with contextlib.suppress(ValidationError):
            assert TypeAdapter(annotation).validate_python(text, context=WRITTEN) >= 0


@pytest.mark.parametrize("size", [999_400, 999_600, 999_999_999, 2_500_000_000_000])
def test_a_size_is_printed_without_an_exponent(size: int) -> None:
    assert "e" not in units.format_bytes(size)
