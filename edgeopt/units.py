"""Quantities with units: what a file says as text, the program holds as plain numbers."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Annotated

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

_SIZES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_TIMES = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4}
_CLOCKS = {"MHz": 1e6, "GHz": 1e9}
_RATES = {"MB/s": 1e6, "GB/s": 1e9}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%/]+)\s*")

#: Validation context of text that a person wrote: there, a quantity must name its unit.
#: Our own JSON holds plain numbers (bytes, milliseconds, fractions of one).
WRITTEN = {"written": True}


def _split(text: object, example: str) -> tuple[float, str]:
    if not isinstance(text, str):
        raise ValueError(f"write it as text with its unit, like {example!r}")
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number with a unit, like {example!r}")
    return float(match[1]), match[2]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scaled(text: object, units: dict[str, float] | dict[str, int], example: str) -> float:
    number, unit = _split(text, example)
    if unit not in units:
        raise ValueError(f"unknown unit {unit!r} in {text!r}; use one of {', '.join(units)}")
    return number * units[unit]


def _above_zero(value: float, text: object) -> float:
    if value <= 0:
        raise ValueError(f"{text!r} must be more than zero")
    return value


def parse_bytes(text: object) -> int:
    """Read a size: decimal units are powers of 1000, binary ones (MiB) of 1024.

    >>> parse_bytes("64MB"), parse_bytes("1.5 MiB")
    (64000000, 1572864)
    """
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    return round(_scaled(text, _SIZES, "64MB"))


def parse_millis(text: object) -> float:
    """Read a duration as milliseconds.

    >>> parse_millis("30ms"), parse_millis("2 s")
    (30.0, 2000.0)
    """
    if isinstance(text, int | float) and _is_number(text) and text >= 0:
        return float(text)
    return _scaled(text, _TIMES, "30ms")


def parse_fraction(text: object) -> float:
    """Read a percentage as a fraction of one.

    >>> parse_fraction("1%")
    0.01
    """
    if isinstance(text, int | float) and _is_number(text) and 0 <= text <= 1:
        return float(text)
    number, unit = _split(text, "1%")
    if unit != "%" or number > 100:
        raise ValueError(f"{text!r} is not a percentage, like '1%'")
    return number / 100


def parse_hertz(text: object) -> float:
    """Read a clock as cycles per second.

    >>> parse_hertz("1.8GHz")
    1800000000.0
    """
    if isinstance(text, int | float) and _is_number(text) and text > 0:
        return float(text)
    return _above_zero(_scaled(text, _CLOCKS, "1.8GHz"), text)


def parse_rate(text: object) -> float:
    """Read a bandwidth as bytes per second.

    >>> parse_rate("2.8GB/s")
    2800000000.0
    """
    if isinstance(text, int | float) and _is_number(text) and text > 0:
        return float(text)
    return _above_zero(_scaled(text, _RATES, "2.8GB/s"), text)


def _digits(value: float) -> str:
    """Print three significant digits, and never an exponent."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def format_bytes(size: float) -> str:
    """Print a size in decimal units with three significant digits.

    >>> format_bytes(90_868_376), format_bytes(512)
    ('90.9 MB', '512 B')
    """
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(size) >= scale:
            return f"{_digits(size / scale)} {unit}"
    return f"{size:.0f} B"


def format_millis(milliseconds: float) -> str:
    """Print a duration with three significant digits.

    >>> format_millis(0.0421), format_millis(1234)
    ('42.1 us', '1.23 s')
    """
    if milliseconds >= 1000:
        return f"{_digits(milliseconds / 1000)} s"
    if milliseconds >= 1:
        return f"{_digits(milliseconds)} ms"
    return f"{_digits(milliseconds * 1000)} us"


def format_fraction(fraction: float) -> str:
    """Print a fraction of one as a percentage with three significant digits.

    >>> format_fraction(0.005), format_fraction(0.8562)
    ('0.5%', '85.6%')
    """
    return f"{fraction * 100:.3g}%"


def format_hertz(clock: float) -> str:
    """Print a clock as it is written in target files.

    >>> format_hertz(1.8e9), format_hertz(600e6)
    ('1.8GHz', '600MHz')
    """
    return f"{clock / 1e9:.4g}GHz" if clock >= 1e9 else f"{clock / 1e6:.4g}MHz"


def format_rate(rate: float) -> str:
    """Print a bandwidth as it is written in target files.

    >>> format_rate(2.8e9), format_rate(840e6)
    ('2.8GB/s', '840MB/s')
    """
    return f"{rate / 1e9:.4g}GB/s" if rate >= 1e9 else f"{rate / 1e6:.4g}MB/s"


def _reader(parse: Callable[[object], float], example: str) -> BeforeValidator:
    def read(value: object, info: ValidationInfo) -> float:
        if not isinstance(value, str) and info.context and info.context.get("written"):
            raise ValueError(f"write it as text with its unit, like {example!r}")
        return parse(value)

    return BeforeValidator(read)


def _text(units: Iterable[str], example: str) -> WithJsonSchema:
    """Describe a quantity to an editor: a number and one of the units."""
    choice = "|".join(re.escape(unit) for unit in units)
    pattern = rf"^\s*[0-9]+(\.[0-9]+)?\s*({choice})\s*$"
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


def format_figure(figure: float | None, unit: str) -> str:
    """Print a figure with its unit; a dash when there is none.

    >>> format_figure(0.0125, "fraction"), format_figure(None, "bytes")
    ('1.25 %', '-')
    """
    if figure is None:
        return "-"
    match unit:
        case "bytes":
            return format_bytes(figure)
        case "ms":
            return format_millis(figure)
        case "instructions":
            return f"{figure / 1e6:,.1f} M"
        case "fraction":
            return f"{figure * 100:.2f} %"
        case _:
            return f"{figure:.1e}"


#: A size in bytes, written as "64MB"; a plain integer is what our own JSON holds.
Bytes = Annotated[int, _reader(parse_bytes, "64MB"), _text(_SIZES, "64MB")]
#: A duration in milliseconds, written as "30ms".
Millis = Annotated[float, _reader(parse_millis, "30ms"), _text(_TIMES, "30ms")]
#: A fraction of one, written as "1%".
Fraction = Annotated[float, _reader(parse_fraction, "1%"), _text(("%",), "1%")]
#: A clock in Hz, written as "1.8GHz".
Hertz = Annotated[float, _reader(parse_hertz, "1.8GHz"), _text(_CLOCKS, "1.8GHz")]
#: A bandwidth in bytes per second, written as "2.8GB/s".
Rate = Annotated[float, _reader(parse_rate, "2.8GB/s"), _text(_RATES, "2.8GB/s")]
