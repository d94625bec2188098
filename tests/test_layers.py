"""The architecture as a test: who may import whom, and how big a module may grow."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "edgeopt"

#: Each layer may import itself and those before it.
ORDER = (
    ("errors",),
    ("scratch", "heap"),
    ("units",),
    ("catalog",),
    ("budget",),
    ("target",),
    ("board", "testing"),
    ("fact",),
    ("surroundings", "sparsify"),
    ("cut", "choice"),
    ("artifact",),
    ("profile", "effort"),
    ("task",),
    ("project",),
    ("store",),
    ("tiles", "times", "filters"),
    ("ending",),
    ("program",),
    ("model",),
    ("runner",),
    ("compress", "compile", "trim", "deploy", "measure", "verify", "compare"),
    ("example",),
    ("steady", "confine", "energy"),
    ("job",),
    ("trial", "prepare", "interleave"),
    ("learning",),
    ("fitting", "timing"),
    ("verdict", "divergence"),
    ("building",),
    ("pipeline",),
    ("tune", "fleet", "rivals"),
    ("chart",),
    ("report",),
    ("cli",),
    ("hil",),
    ("pytest_plugin",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
#: testing is public for users' tests: it may use all that a test of a board needs.
FREE = {("testing", "board")}

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    """Return the first name below the package: "board" for edgeopt/board/ssh.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "edgeopt" and len(parts) > 1 and parts[1] != "__version__":
                found.add(parts[1])
    return found


def violations(part: str, imported: set[str]) -> list[str]:
    return [
        other
        for other in sorted(imported)
        if other != part
        and (part, other) not in FREE
        and (other not in RANK or RANK[other] >= RANK[part])
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_layers_below(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    assert part in RANK, f"{part} has no layer"
    assert violations(part, imported_parts(path)) == []


def test_the_layer_check_sees_a_stage_that_imports_another() -> None:
    assert violations("deploy", {"measure", "errors"}) == ["measure"]
    assert violations("units", {"board"}) == ["board"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_stays_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 400


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_function_stays_under_sixty_lines(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_no_module_is_named_for_nothing() -> None:
    hollow = {"utils", "common", "helpers", "manager", "base", "core", "misc", "handler"}
    assert [path for path in MODULES if path.stem in hollow] == []


def test_host_keys_are_never_accepted_unseen_and_nothing_is_unpickled() -> None:
    banned = ("AutoAddPolicy", "WarningPolicy", "import pickle", "shell=True", "os.system")
    found = [(path.name, word) for path in MODULES for word in banned if word in path.read_text()]
    assert found == []
