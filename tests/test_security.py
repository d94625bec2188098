"""Promises of SECURITY.md that can be read off the code, and that each of them names its tests."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from edgeopt.board import connect
from tests.test_faults import ROOT, defined_in
from tests.test_layers import MODULES

PROMISES = (ROOT / "SECURITY.md").read_text()
_TEST = re.compile(r"`(tests/[\w/]+\.py::[\w:]+)`")

#: What would break a promise by its mere presence.
BANNED = {
    "AgentRequestHandler": "an agent is never forwarded",
    "auth_password": "nobody logs in with a password",
    "auth_interactive": "nobody logs in with a password",
    "getpass.getpass": "nobody is asked for a secret",
    "import tarfile": "no archive is unpacked",
    "extractall": "no archive is unpacked",
    "import yaml": "no YAML is read",
    "tvm.rpc": "TVM's RPC lets anybody in",
    "verify=False": "certificates are verified",
    "StrictHostKeyChecking=no": "host keys are verified",
    "allow_pickle=True": "nothing is unpickled",
    "mktemp(": "names of temporary files cannot be guessed",
    "cpupower": "no governor is set",
    "cpufreq-set": "no governor is set",
    "scaling_setspeed": "no clock is set",
    "os.umask": "modes are given where files are made",
    "0o777": "nothing is for everybody to write",
    "0o666": "nothing is for everybody to write",
}

#: Lowest releases without the known flaws that matter here: CVE-2023-48795 and CVE-2022-24302
#: (paramiko), CVE-2024-5187 and CVE-2025-51480 (onnx), CVE-2025-32434 (torch), CVE-2024-34064
#: (jinja2), CVE-2024-12797 (cryptography, by the OpenSSL in its wheels).
FLOORS = {
    "paramiko": (3, 4),
    "onnx": (1, 21),
    "torch": (2, 10),
    "jinja2": (3, 1, 4),
    "cryptography": (44, 0, 1),
}


def promised() -> list[str]:
    return _TEST.findall(PROMISES)


def test_every_promise_names_tests_that_exist() -> None:
    rows = [line for line in PROMISES.splitlines() if line.startswith("| ") and "::" in line]
    assert len(rows) >= 15
    assert len(promised()) >= len(rows)
    for each in promised():
        path, _, name = each.partition("::")
        assert name in defined_in(ROOT / path), each


def test_a_promise_without_a_test_would_be_seen() -> None:
    table = [line for line in PROMISES.splitlines() if re.match(r"\| [^-|]", line)][1:]
    assert all(_TEST.search(line) for line in table)
    assert not _TEST.search("| nothing is lost | trust us |")


@pytest.mark.parametrize("word", BANNED)
def test_what_would_break_a_promise_is_nowhere(word: str) -> None:
    found = [path.name for path in MODULES if word in path.read_text()]
    assert found == [], BANNED[word]


#: A governor's file after what writes files, in a script or in Python.
_SETS = re.compile(r"(>|\btee\b|write_\w+\().*scaling_governor|scaling_governor.*write_\w+\(")


def test_the_governor_is_read_and_never_set() -> None:
    lines = [line for path in MODULES for line in path.read_text().splitlines()]
    assert sum("scaling_governor" in line for line in lines) >= 2
    assert [line for line in lines if _SETS.search(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        'echo performance > "$p/scaling_governor"',
        'echo performance | tee "$p/scaling_governor"',
        '(policy / "scaling_governor").write_text("performance")',
    ],
)
def test_a_governor_that_is_set_would_be_seen(line: str) -> None:
    assert _SETS.search(line)


def test_only_strong_ciphers_and_macs_are_offered() -> None:
    offered = (*connect._CIPHERS, *connect._MACS)
    assert all("cbc" not in name and "md5" not in name and "sha1" not in name for name in offered)
    assert all(re.match(r"aes(128|256)-(gcm|ctr)|hmac-sha2-", name) for name in offered)


def shell_texts(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield what a module gives to a shell as text: a script, or what follows sh -c."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = node.func.id
            if name in {"run_script", "script_argv"}:
                yield node.args[1 if name == "run_script" else 0]
        if isinstance(node, ast.List | ast.Tuple) and len(node.elts) > 2:
            first, second, *_ = node.elts
            words = [each.value for each in (first, second) if isinstance(each, ast.Constant)]
            if words == ["sh", "-c"]:
                yield node.elts[2]


def is_constant(node: ast.expr) -> bool:
    """A name, a literal, or a sum of these; never text with a value in it."""
    if isinstance(node, ast.BinOp):
        return is_constant(node.left) and is_constant(node.right)
    return isinstance(node, ast.Name) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_what_a_shell_reads_is_constant_and_values_are_its_parameters() -> None:
    seen = 0
    for path in MODULES:
        for node in shell_texts(ast.parse(path.read_text())):
            assert is_constant(node), f"{path.name}:{node.lineno}"
            seen += 1
    assert seen > 25


@pytest.mark.parametrize(
    "line",
    ['run_script(board, f"rm {name}", (), doing="x")', '["sh", "-c", "rm " + name.text]'],
)
def test_a_value_in_a_scripts_text_would_be_seen(line: str) -> None:
    assert not all(map(is_constant, shell_texts(ast.parse(line))))


def test_dependencies_are_no_older_than_their_known_flaws_allow() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(each for extra in extras for each in extra)]
    for name, floor in FLOORS.items():
        lowest = next(each for each in asked if re.match(rf"{name}\b", each)).partition(">=")[2]
        assert tuple(map(int, lowest.split("."))) >= floor, name


def release(version: str) -> tuple[int, ...]:
    """Read "2.13.0+cpu" as (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    assert found is not None, version
    return tuple(map(int, found[0].split(".")))


@pytest.mark.parametrize("name", FLOORS)
def test_what_is_installed_is_no_older_than_its_known_flaws_allow(name: str) -> None:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"no {name} here; run: pip install 'edgeopt[train]'")
    assert release(version) >= FLOORS[name]


@pytest.mark.parametrize("version", ["3.3.2", "3", "2.99.9.post1", "3.3+local"])
def test_an_older_release_would_be_seen(version: str) -> None:
    assert release(version) < FLOORS["paramiko"]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("import paramiko; c.set_missing_host_key_policy(paramiko.AutoAddPolicy)", "B507"),
        ("import subprocess; subprocess.run('rm ' + name, shell=True)", "B602"),
        ("import pickle; pickle.loads(data)", "B301"),
        ("import os; os.chmod(path, 0o777)", "B103"),
        ("import tempfile; tempfile.mktemp()", "B306"),
        ("password = 'secret'", "B105"),
        ("assert True", ""),
    ],
)
def test_bandit_as_it_is_run_sees_a_flaw_that_is_planted(
    tmp_path: Path, line: str, rule: str
) -> None:
    if importlib.util.find_spec("bandit") is None:
        pytest.skip("no bandit here; run: pip install 'edgeopt[dev]'")
    command = re.search(r"/bandit (.*) edgeopt$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command is not None
    (tmp_path / "planted.py").write_text(f"{line}\n")
    done = subprocess.run(
        [sys.executable, "-m", "bandit", *command[1].split(), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == bool(rule), done.stderr
    assert rule in done.stdout


def test_the_security_rules_of_ruff_are_on_for_the_package() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    for pattern, ignored in lint["per-file-ignores"].items():
        assert not pattern.startswith("edgeopt") or not any(each[0] == "S" for each in ignored)


def test_every_array_file_is_read_without_pickle() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"np.load", "numpy.load"}:
                said = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert said.get("allow_pickle") == "False", f"{path.name}:{node.lineno}"
