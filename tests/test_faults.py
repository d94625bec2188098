"""Every fault has a test that causes it, or says why not: the table of tests/faults.toml."""

import ast
import tomllib
from collections.abc import Iterator
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


#: Who asks for one of these talks to a real OpenSSH server, or to the emulated board's.
SERVERS = {"start_server", "start_sshd", "open_emulated"}


@cache
def module(path: Path) -> dict[str, ast.stmt]:
    """Return what a file defines or imports at its top, by name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
    return found


def words_of(node: ast.AST) -> Iterator[str]:
    """Yield the names that a definition uses: parameters (fixtures), calls, fixtures by name."""
    for each in ast.walk(node):
        if isinstance(each, ast.arg):
            yield each.arg
        elif isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Call) and ast.unparse(each.func).endswith("getfixturevalue"):
            yield ast.literal_eval(each.args[0])
        elif isinstance(each, ast.Constant) and str(each.value).startswith("tests."):
            # A module of the tests that is run in a process of its own.
            yield str(each.value)


def heirs(path: Path, name: str) -> Iterator[tuple[Path, str]]:
    """Yield the classes in which the tests of a class are run again, for other boards."""
    for other in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in module(other).values() if name in other.read_text() else ():
            if isinstance(node, ast.ClassDef) and name in map(ast.unparse, node.bases):
                yield other, node.name


def look_up(path: Path, name: str) -> tuple[Path, ast.AST] | None:
    """Return where a name of a file is defined: there, where it comes from, or in a conftest.py."""
    if name.startswith("tests."):
        there = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        return (there, ast.parse(there.read_text())) if there.is_file() else None
    node = module(path).get(name) if path.is_file() else None
    if isinstance(node, ast.ImportFrom):
        there = ROOT.joinpath(*str(node.module).split(".")).with_suffix(".py")
        return look_up(there, name) if str(node.module).startswith("tests.") else None
    if node is not None:
        return path, node
    above = [each / "conftest.py" for each in path.parents if ROOT in each.parents]
    return next(
        ((each, module(each)[name]) for each in above if each.is_file() and name in module(each)),
        None,
    )


def meets_a_server(test: str) -> bool:
    """Tell whether a test, its fixtures or what they call start or ask for a real server."""
    file, _, name = test.partition("::")
    waiting = [(ROOT / file, name.split("::")[0])]
    if "::" in name:
        waiting += heirs(ROOT / file, name.split("::")[0])
    seen = set()
    while waiting:
        path, word = waiting.pop()
        if word in SERVERS:
            return True
        if (path, word) in seen or (found := look_up(path, word)) is None:
            continue
        seen.add((path, word))
        waiting += [(found[0], each) for each in words_of(found[1])]
    return False


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
    elif not fault.get("left") and not any(map(meets_a_server, fault["tests"])):
        found.append("no test of it meets a real server, and nothing says why")
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
        (
            {
                "fault": "f",
                "tests": ["tests/deploy/test_upload.py::test_objects_are_read_only"],
            },
            "no test of it meets a real server",
        ),
    ],
)
def test_a_row_that_is_wrong_is_found(row: dict[str, Any], problem: str) -> None:
    assert any(problem in each for each in problems(row))


@pytest.mark.parametrize(
    ("test", "meets"),
    [
        # By its own parameter, by a fixture that asks for one, in a class of another file, in a
        # process of its own, and by a function that it calls.
        ("tests/host/test_ssh.py::test_the_enrol_command_does_enrol", True),
        ("tests/host/test_deploy.py::test_a_file_system_without_inodes_is_refused", True),
        ("tests/board/contract.py::BoardContract::test_arguments_arrive_as_they_are", True),
        (
            "tests/host/test_soak.py::test_a_half_release_a_leftover_and_an_orphan_would_be_seen",
            True,
        ),
        (
            "tests/hil/test_power.py::test_the_kernel_kills_what_exceeds_a_memory_limit",
            True,
        ),
        ("tests/host/test_deploy.py::test_every_script_runs_in_busybox_alone", False),
        ("tests/board/test_local.py::TestLocalBoard::test_its_figures_are_native", False),
    ],
)
def test_a_test_that_meets_a_server_is_told_from_one_that_does_not(test: str, meets: bool) -> None:
    path, _, name = test.partition("::")
    assert name in defined_in(ROOT / path)
    assert meets_a_server(test) == meets


def table() -> str:
    """Return the table fault x test as Markdown."""
    lines = ["| fault | what happens | caused by | not covered |", "|---|---|---|---|"]
    for name, row in FAULTS.items():
        tests = "<br>".join(f"`{each}`" for each in row.get("tests", ()))
        lines.append(f"| {name} | {row['fault']} | {tests} | {row.get('left', '')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
