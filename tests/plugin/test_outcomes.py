"""The plugin without any board, and with one that goes away: no outcome is taken for another."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

# Inner runs drop what they import, and numpy cannot be imported twice: it is here before.
import edgeopt.board.ssh
import edgeopt.hil.deploying
import edgeopt.hil.quarantine  # noqa: F401
from edgeopt.board.lease import hold
from edgeopt.board.local import LocalBoard
from edgeopt.cli.places import cache_folder
from edgeopt.testing import FaultProxy
from tests.conftest import Sshd

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.host

ARGUMENTS = ("-p", "edgeopt.pytest_plugin", "-p", "no:cacheprovider", "-ra")

USES_BOARD = """
def test_on_a_board(board):
    assert board.run(["echo", "there"], timeout=30).stdout == b"there\\n"

def test_elsewhere():
    pass
"""


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine; pytester's folder is the home folder of inner runs."""
    monkeypatch.setenv("EDGEOPT_CACHE_DIR", str(cache_folder()))
    for name in ("EDGEOPT_BOARD", "EDGEOPT_REQUIRE_BOARD"):
        monkeypatch.delenv(name, raising=False)


def run(pytester: pytest.Pytester, *arguments: str, plugins: object = None) -> pytest.RunResult:
    return pytester.runpytest_inprocess(
        *ARGUMENTS, *arguments, plugins=[plugins] if plugins is not None else []
    )


def test_without_a_board_the_command_that_provides_one_is_the_reason(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(USES_BOARD)
    result = run(pytester)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*no board: pytest --board rpi4 *"])


def test_a_required_board_that_is_not_there_is_a_failure(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPT_REQUIRE_BOARD", "1")
    pytester.makepyfile(USES_BOARD)
    result = run(pytester)
    result.assert_outcomes(passed=1, errors=1)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*EDGEOPT_REQUIRE_BOARD is set, and there is no board*"])


def test_loading_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, edgeopt.pytest_plugin;"
        "print([m for m in ('numpy', 'onnx', 'tvm', 'paramiko', 'pydantic', 'typer', 'torch')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_test_with_a_board_can_be_chosen_and_left_out(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        USES_BOARD
        + """
import pytest

class TestOwn:
    @pytest.fixture
    def board(self):
        return "a board of its own"

    def test_with_a_board_of_its_own(self, board):
        assert board == "a board of its own"
"""
    )
    run(pytester, "-m", "not hil").assert_outcomes(passed=2, deselected=1)
    run(pytester, "-m", "hil").assert_outcomes(skipped=1, deselected=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--board", "pi@nowhere"), "add --board-target NAME"),
        (("--board", "pi@nowhere", "--board-target", "rpi44"), "did you mean"),
        (("--board", "a; reboot", "--board-target", "rpi4"), "is not a board's address"),
    ],
)
def test_a_board_that_cannot_be_meant_is_refused_before_any_test(
    pytester: pytest.Pytester, arguments: tuple[str, ...], words: str
) -> None:
    pytester.makepyfile(USES_BOARD)
    result = run(pytester, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in result.stderr.str() + result.stdout.str()


def test_this_machine_is_a_board_with_properties_in_the_report(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES_BOARD)
    result = run(pytester, "--board", "local", "--junitxml", "report.xml")
    result.assert_outcomes(passed=2)
    found = ET.parse(pytester.path / "report.xml")
    names = {each.get("name"): each.get("value") for each in found.iter("property")}
    assert names == {"board": "this machine", "target": "x86-64", "kind": "native"}


def test_a_board_is_leased_while_the_tests_run_and_free_afterwards(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
from pathlib import Path

def test_leased(board):
    assert "pytest in" in (Path.home() / ".edgeopt/lease").read_text()
"""
    )
    run(pytester, "--board", "local").assert_outcomes(passed=1)
    assert (pytester.path / ".edgeopt").exists()
    assert not (pytester.path / ".edgeopt" / "lease").exists()


def test_what_a_board_lacks_is_the_reason_of_the_skip(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
import pytest

@pytest.mark.needs("dotprod", "ram>=100TB")
def test_of_what_nobody_has():
    raise AssertionError

@pytest.mark.needs("ram>=1MB", "cores>=1", "latency", "x86_64")
def test_of_what_is_here():
    pass

@pytest.mark.needs("dotprd")
def test_of_what_cannot_be():
    pass
"""
    )
    result = run(pytester, "--board", "local")
    result.assert_outcomes(passed=1, skipped=1, errors=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*this machine: *no dotprod; the board has * of memory, 100000 GB are needed"]
    )
    assert "is nothing that a board can have" in result.stdout.str()


class Network:
    """Gives the tests of an inner run the proxy between them and their board."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy

    @pytest.fixture(name="network")
    def give_proxy(self) -> FaultProxy:
        return self._proxy


@pytest.fixture
def network(
    start_sshd: Callable[..., Sshd], pytester: pytest.Pytester, tmp_path: Path
) -> Iterator[FaultProxy]:
    """A server whose commands start in a folder of their own, so that its lease is ours alone."""
    server = start_sshd(f'ForceCommand cd {tmp_path} && exec sh -c "$SSH_ORIGINAL_COMMAND"')
    with FaultProxy(server.port) as proxy:
        server.write_config(pytester.path / "ssh_config", port=proxy.port)
        yield proxy


OVER_SSH = ("--board", "board", "--board-target", "x86-64", "--board-ssh-config", "ssh_config")


def test_a_test_whose_board_was_gone_once_is_run_again_and_passes(
    pytester: pytest.Pytester, network: FaultProxy
) -> None:
    pytester.makepyfile(
        """
import threading, pytest
tries = []

@pytest.fixture(scope="session")
def made(board):
    tries.append("made")

def test_first(made, board):
    pass

def test_cut(made, board, network):
    tries.append("tried")
    if tries.count("tried") == 1:
        threading.Timer(0.5, network.cut).start()
        board.run(["sleep", "20"], timeout=30)
    assert board.run(["echo", "back"], timeout=30).stdout == b"back\\n"

def test_all_was_set_up_again_and_only_once(board):
    assert tries == ["made", "tried", "made", "tried"]
"""
    )
    result = run(pytester, *OVER_SSH, plugins=Network(network))
    result.assert_outcomes(passed=3)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*test_cut: run again, for the board was gone: *"])


GOES_AWAY = """
import threading

def test_before(board):
    pass

def test_cut(board, network):
    network.fault, network.at_byte = "reset", 0
    threading.Timer(0.5, network.cut).start()
    board.run(["sleep", "20"], timeout=30)

def test_after(board):
    raise AssertionError("no board to find this out on")

def test_elsewhere():
    pass
"""


def test_a_board_that_stays_away_is_no_failure_and_ends_what_needs_it(
    pytester: pytest.Pytester, network: FaultProxy
) -> None:
    pytester.makepyfile(GOES_AWAY)
    result = run(pytester, *OVER_SSH, "--junitxml", "report.xml", plugins=Network(network))
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*the board is broken: *", "*2 passed, 1 skipped, 1 board gone*"]
    )
    # Where nothing but the board was at fault, the run ends as edgeopt does.
    assert result.ret == 6
    cases = {
        each.get("name"): each for each in ET.parse(pytester.path / "report.xml").iter("testcase")
    }
    assert [each.tag for each in cases["test_cut"] if each.tag != "properties"] == ["error"]
    assert {each.tag for each in cases["test_after"]} == {"skipped"}


def test_a_failure_beside_an_absent_board_is_still_a_failure(
    pytester: pytest.Pytester, network: FaultProxy
) -> None:
    pytester.makepyfile(GOES_AWAY + "\ndef test_wrong():\n    assert 1 == 2\n")
    result = run(pytester, *OVER_SSH, plugins=Network(network))
    result.assert_outcomes(passed=2, skipped=1, failed=1)
    assert result.ret == 1


def test_a_failed_assertion_on_a_board_is_not_run_again(
    pytester: pytest.Pytester, network: FaultProxy
) -> None:
    pytester.makepyfile(
        "tries = []\n"
        "def test_wrong(board):\n    tries.append(1)\n    assert 1 == 2\n"
        "def test_once(board):\n    assert tries == [1]\n"
    )
    run(pytester, *OVER_SSH, plugins=Network(network)).assert_outcomes(failed=1, passed=1)


def test_a_board_that_somebody_else_has_is_gone_and_says_who(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(USES_BOARD + "\ndef test_next(board):\n    pass\n")
    root = PurePosixPath(pytester.path / ".edgeopt")
    with hold(LocalBoard(), root, owner="the night's soak test", seconds=600):
        result = run(pytester, "--board", "local")
    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == 6
    result.stdout.fnmatch_lines(["*BoardBusy*", "*the night's soak test*"])


def test_a_test_in_quarantine_is_skipped_with_its_reason_until_its_day_is_over(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        test_some="""
import pytest

@pytest.mark.parametrize("n", [1, 2])
def test_flaky(n):
    raise AssertionError

def test_flaky_no_longer():
    pass

def test_good():
    pass
"""
    )
    pytester.path.joinpath("quarantine.toml").write_text(
        '[[quarantine]]\ntest = "test_some.py::test_flaky"\n'
        'reason = "loses its Wi-Fi: issue 12"\nexpires = "2999-12-31"\n'
        '[[quarantine]]\ntest = "test_some.py::test_flaky_no_longer"\n'
        'reason = "see issue 7"\nexpires = "2020-01-31"\n'
    )
    result = run(pytester)
    result.assert_outcomes(passed=1, skipped=2, failed=1)
    result.stdout.fnmatch_lines(
        ["SKIPPED*in quarantine until 2999-12-31: loses its Wi-Fi: issue 12"]
    )
    assert "its quarantine ended on 2020-01-31: see issue 7" in result.stdout.str()
    verified = run(pytester, "--quarantine-verify")
    verified.assert_outcomes(failed=2, passed=1, deselected=1)


def test_a_quarantine_without_a_reason_or_with_a_misspelt_key_is_refused(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile("def test_good():\n    pass\n")
    for text in (
        '[[quarantine]]\ntest = "t.py"\nexpires = "2999-12-31"\n',
        '[[quarantine]]\ntest = "t.py"\nreason = "r"\nexpire = "2999-12-31"\n',
    ):
        pytester.path.joinpath("quarantine.toml").write_text(text)
        result = run(pytester)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "quarantine.toml" in result.stderr.str() + result.stdout.str()


def test_a_place_of_labgrid_is_acquired_for_the_run_and_given_back(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = pytester.path / "bin" / "labgrid-client"
    client.parent.mkdir()
    client.write_text(f'#!/bin/sh\necho "$*" >>{pytester.path}/said\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}:{os.environ['PATH']}")
    (pytester.path / "edgeopt.toml").write_text(
        'app = "a"\nmodel = "m.onnx"\n[labgrid]\nx86-64 = "desk"\n'
    )
    pytester.makepyfile(USES_BOARD)
    run(pytester, "--board", "local").assert_outcomes(passed=2)
    said = (pytester.path / "said").read_text().splitlines()
    assert said == ["-p desk acquire", "-p desk release"]
