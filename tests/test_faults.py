"""Every fault has a test that causes it, or says why not: the table of tests/faults.toml."""

import ast
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FAULTS: dict[str, dict[str, Any]] = tomllib.loads((ROOT / "tests" / "faults.toml").read_text())


@cache
def defined_in(path: Path) -> frozenset[str]:
    """Return the tests that a file defines: "test_a", "TestB::test_c"."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (each for each in node.body if isinstance(each, ast.FunctionDef))
            found |= {f"{node.name}::{each.name}" for each in inner}
    return frozenset(found)


def problems(fault: dict[str, Any]) -> list[str]:
    """Return what is wrong with one row: an unknown key, a blank cell, a test that is not there."""
    found = [f"unknown key {key}" for key in fault if key not in {"fault", "tests", "left"}]
    found += [
        f"{key} is blank" for key in ("fault", "left") if not str(fault.get(key, "x")).strip()
    ]
    if not fault.get("fault"):
        found.append("it does not say what it is")
    if not fault.get("tests") and not fault.get("left"):
        found.append("neither a test nor a reason")
    for each in fault.get("tests", ()):
        path, _, name = each.partition("::")
        if not (ROOT / path).is_file() or name not in defined_in(ROOT / path):
            found.append(f"there is no {each}")
    return found


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_tests_that_exist_or_a_reason(name: str) -> None:
    assert problems(FAULTS[name]) == []


def test_all_forty_faults_are_there_in_their_order() -> None:
    assert list(FAULTS) == [f"F{number}" for number in range(1, 41)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"fault": "f", "tests": []}, "neither a test nor a reason"),
        ({"fault": "f", "tests": ["tests/test_faults.py::test_gone"]}, "there is no tests/"),
        ({"fault": "f", "tests": ["tests/gone.py::test_a"]}, "there is no tests/gone.py"),
        ({"fault": "f", "left": " "}, "left is blank"),
        (
            {"tests": ["tests/test_faults.py::test_all_forty_faults_are_there_in_their_order"]},
            "say",
        ),
        ({"fault": "f", "test": "x", "left": "r"}, "unknown key test"),
    ],
)
def test_a_row_that_is_wrong_is_found(row: dict[str, Any], problem: str) -> None:
    assert any(problem in each for each in problems(row))


def table() -> str:
    """Return the table fault x test as Markdown."""
    lines = ["| fault | what happens | caused by | not covered |", "|---|---|---|---|"]
    for name, row in FAULTS.items():
        tests = "<br>".join(f"`{each}`" for each in row.get("tests", ()))
        lines.append(f"| {name} | {row['fault']} | {tests} | {row.get('left', '')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
