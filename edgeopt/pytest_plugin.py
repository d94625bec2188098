"""The pytest plugin: tests on a board, which keep an absent board and a slow model apart.

Loading it imports nothing heavy: it is loaded by every run of pytest where edgeopt is installed.
"""

import datetime
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, final

import pytest
from _pytest.runner import runtestprotocol

from edgeopt.errors import (
    BoardBusy,
    BoardUnreachable,
    ConfigError,
    EdgeoptError,
    MeasurementNoisy,
)

if TYPE_CHECKING:
    from edgeopt.compare import Comparison
    from edgeopt.hil.deploying import Deployments
    from edgeopt.hil.measured import Deployment, Measured
    from edgeopt.hil.quarantine import Entry
    from edgeopt.hil.session import BoardSession, LeasedBoard

#: The fixture that everything with a board goes through; a test's own `board` does not.
_BOARD = "edgeopt_board"
_NAME = "edgeopt-boards"
_GONE = (BoardUnreachable, BoardBusy)
#: Not the model's doing, and no verdict on it.
_NO_VERDICT = (*_GONE, ConfigError, MeasurementNoisy)
_PROVIDE = (
    "pytest --board rpi4 (an emulated one stands in unless edgeopt.toml names another), "
    "or --board user@host --board-target rpi4"
)
_MARKERS = (
    "hil: needs a board; every test with the fixture `board` has it (pytest -m hil)",
    "needs(*what): skip where the board lacks it: 'dotprod', 'ram>=512MB', 'cores>=4', 'latency'",
    "deploys(model, *, profile, ram, ...): what the fixture `deployment` deploys",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options; each is for boards only."""
    group = parser.getgroup("boards", "tests on boards (edgeopt)")
    group.addoption("--board", help="Target name, user@host, or local (or EDGEOPT_BOARD).")
    group.addoption("--board-target", help="Kind of device behind a destination: rpi4.")
    group.addoption("--board-ssh-config", help="OpenSSH configuration (default: ~/.ssh/config).")
    group.addoption(
        "--update-baselines", action="store_true", help="Store what is measured as baselines."
    )
    group.addoption(
        "--quarantine-verify", action="store_true", help="Run only what is in quarantine."
    )
    parser.addini("edgeopt_project", "folder of edgeopt.toml", default=".")
    parser.addini("edgeopt_baselines", "folder of baselines", default="baselines")
    parser.addini("edgeopt_quarantine", "file of tests in quarantine", default="quarantine.toml")
    parser.addini("edgeopt_launches", "launches that a comparison uses", default="8")


def pytest_configure(config: pytest.Config) -> None:
    """Register markers, and understand --board before any test runs."""
    for each in _MARKERS:
        config.addinivalue_line("markers", each)
    config.pluginmanager.register(Boards(config), _NAME)


def _uses_board(item: pytest.Item) -> bool:
    names = getattr(item, "fixturenames", ())
    return _BOARD in names or item.get_closest_marker("needs") is not None


@final
class Boards:
    """The hooks, and what they know of this run's board."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session: BoardSession | None = None
        #: Lines for the summary: what was retried, and what the baselines say.
        self.story: list[str] = []
        self._gone: list[pytest.TestReport] = []
        self._failed = 0
        self._deployments: Deployments | None = None
        wanted = config.getoption("--board") or os.environ.get("EDGEOPT_BOARD")
        if wanted:
            self.session = _open_session(config, wanted)

    @property
    def deployments(self) -> "Deployments":
        """What was deployed to this run's board."""
        from edgeopt.hil.deploying import Deployments

        assert self.session is not None
        if self._deployments is None:
            self._deployments = Deployments(self.session)
        return self._deployments

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Mark what needs a board, before -m chooses, and what is in quarantine."""
        for item in items:
            if _uses_board(item):
                item.add_marker("hil")
        from_file = _quarantined(self.config, items)
        if self.config.getoption("--quarantine-verify"):
            left = [item for item in items if item not in from_file]
            self.config.hook.pytest_deselected(items=left)
            items[:] = list(from_file)
            return
        today = datetime.datetime.now(datetime.UTC).date()
        for item, entry in from_file.items():
            if not entry.expired(today):
                why = f"in quarantine until {entry.expires}: {entry.reason}"
                item.add_marker(pytest.mark.skip(reason=why))
            else:
                item.stash[_EXPIRED] = entry

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> bool | None:
        """Run a test; where the board went away meanwhile, set all up again and run it again."""
        if not _uses_board(item) or self.session is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        cause = _cause(reports)
        if cause:
            self._start_over(item)
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
            again = _cause(reports)
            self.story.append(f"{item.nodeid}: run again, for the board was gone: {cause}")
            if again:
                self.session.broken = again
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _start_over(self, item: pytest.Item) -> None:
        """Tear down the fixtures of every scope, and let go of the board."""
        assert self.session is not None
        # What it raises is what made the test fail: the board is gone. The hook cannot be called
        # a second time for one test, for pytest's own plugins count on that.
        pytest.CallInfo.from_call(
            lambda: item.session._setupstate.teardown_exact(None),
            when="teardown",
        )
        self.session.close()
        self.deployments.forget()
        try:
            self.story.append(f"{item.nodeid}: the board was lost, and {self.session.recover()}")
        except BoardUnreachable as error:
            self.story.append(f"{item.nodeid}: {error.what}: {error.why}")
        item.user_properties.clear()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Have the board, and all that the test needs of it, before any of its fixtures."""
        if entry := item.stash.get(_EXPIRED, None):
            pytest.fail(f"its quarantine ended on {entry.expires}: {entry.reason}", pytrace=False)
        if not _uses_board(item):
            return
        if self.session is None:
            _without_board(f"no board: {_PROVIDE}")
        if self.session.broken:
            pytest.skip(f"the board is broken: {self.session.broken}")
        board = self._reach()
        item.user_properties += [
            ("board", board.name),
            ("target", board.target.name),
            ("kind", board.kind),
        ]
        _check_needs(item, board)

    def _reach(self) -> "LeasedBoard":
        assert self.session is not None
        try:
            return self.session.board()
        except ConfigError as error:
            # Emulators and toolchains that are not installed here.
            if self.session.kind != "emulated":
                raise
            _without_board(f"no board: {error.what}: {error.why}; {error.fix}")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: "pytest.CallInfo[None]"
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Sort failures: an absent board is an error of its own kind, a broken budget a failure."""
        report = yield
        error = call.excinfo.value if call.excinfo is not None else None
        if isinstance(error, EdgeoptError) and _uses_board(item) and report.failed:
            # Reports of the set-up are errors, to people and in JUnit's XML; others failures.
            report.when = "setup" if isinstance(error, _NO_VERDICT) else "call"
            report.longrepr = f"{type(error).__name__}: {error}"
            if isinstance(error, _GONE):
                vars(report)["board_gone"] = "; ".join(filter(None, (error.what, error.why)))
        elif item.stash.get(_EXPIRED, None) and report.failed:
            report.when = "call"
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count what failed, and for what."""
        if _gone(report):
            self._gone.append(report)
        else:
            self._failed += report.failed

    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
        """Give tests whose board went away a word of their own."""
        return ("board gone", "G", ("BOARD GONE", {"yellow": True})) if _gone(report) else None

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what happened to the board, and what the comparisons say."""
        if not self._gone and not self.story:
            return
        terminalreporter.write_sep("=", "boards")
        for each in self._gone:
            terminalreporter.write_line(f"BOARD GONE {each.nodeid}")
            terminalreporter.write_line(f"  {each.longrepr}".replace("\n", "\n  "))
        for line in self.story:
            terminalreporter.write_line(line)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Give the board back as it was; where only boards were at fault, exit with 6."""
        if self._deployments is not None and (left := self._deployments.remove()):
            self.story.append(left)
        if self.session is not None:
            self.session.close()
        if self._gone and not self._failed and session.exitstatus == pytest.ExitCode.TESTS_FAILED:
            session.exitstatus = BoardUnreachable.exit_code


_EXPIRED: "pytest.StashKey[Entry]" = pytest.StashKey()


def _gone(report: pytest.TestReport) -> str:
    """Return why the board was gone, when that is what the report says; attributes travel."""
    return str(getattr(report, "board_gone", ""))


def _cause(reports: list[pytest.TestReport]) -> str:
    return next(filter(None, map(_gone, reports)), "")


def _without_board(why: str) -> NoReturn:
    """Skip, or fail where a board is required: a run without any must not look like a good one."""
    if os.environ.get("EDGEOPT_REQUIRE_BOARD", "0") not in ("", "0"):
        pytest.fail(f"EDGEOPT_REQUIRE_BOARD is set, and there is {why}", pytrace=False)
    pytest.skip(why)


def _open_session(config: pytest.Config, wanted: str) -> "BoardSession":
    from edgeopt.hil.session import BoardSession, Wanted

    ssh_config = config.getoption("--board-ssh-config")
    asked = Wanted(
        board=wanted,
        target=config.getoption("--board-target"),
        project=config.rootpath / config.getini("edgeopt_project"),
        ssh_config=Path(ssh_config) if ssh_config else None,
    )
    try:
        return BoardSession(asked, owner=f"pytest in {config.rootpath.name}")
    except EdgeoptError as error:
        raise pytest.UsageError(str(error)) from error


def _quarantined(config: pytest.Config, items: list[pytest.Item]) -> "dict[pytest.Item, Entry]":
    path = config.rootpath / config.getini("edgeopt_quarantine")
    if not path.exists():
        return {}
    from edgeopt.hil.quarantine import read_quarantine

    try:
        quarantine = read_quarantine(path)
    except EdgeoptError as error:
        raise pytest.UsageError(str(error)) from error
    found = {item: quarantine.find(item.nodeid) for item in items}
    return {item: entry for item, entry in found.items() if entry is not None}


def _check_needs(item: pytest.Item, board: "LeasedBoard") -> None:
    from edgeopt.hil.needs import unmet

    needs = [need for marker in item.iter_markers("needs") for need in marker.args]
    if reasons := unmet(needs, board.facts, board.kind):
        pytest.skip(f"{board.name}: {'; '.join(reasons)}")


def _boards(request: pytest.FixtureRequest) -> Boards:
    found = request.config.pluginmanager.getplugin(_NAME)
    assert isinstance(found, Boards)
    return found


@pytest.fixture(scope="session")
def edgeopt_board(request: pytest.FixtureRequest) -> "LeasedBoard":
    """Lease the board of this run exclusively, until its end."""
    session = _boards(request).session
    assert session is not None, "the set-up of a test without a board was not skipped"
    return session.board()


@pytest.fixture(scope="session")
def board(edgeopt_board: "LeasedBoard") -> "LeasedBoard":
    """Give the board of this run: run(), put(), get(), facts and target."""
    return edgeopt_board


@pytest.fixture
def deploy(
    edgeopt_board: "LeasedBoard", request: pytest.FixtureRequest
) -> "Callable[..., Deployment]":
    """Return a function that deploys a model, or the project's own, as @deploys does."""
    boards = _boards(request)

    def deploy_model(model: str | None = None, **options: Any) -> "Deployment":
        made = boards.deployments.deploy(model, options)
        request.node.user_properties.append(("digest", made.digest))
        return made

    return deploy_model


@pytest.fixture
def deployment(deploy: "Callable[..., Deployment]", request: pytest.FixtureRequest) -> "Deployment":
    """Deploy what @pytest.mark.deploys("model.onnx") names, or the project's model."""
    marker = request.node.get_closest_marker("deploys")
    return deploy(*marker.args, **marker.kwargs) if marker else deploy()


@pytest.fixture
def release(deployment: "Deployment") -> Any:
    """Give the deployment's release: where it lies on the board."""
    return deployment.release


@pytest.fixture
def measurement(
    deployment: "Deployment", edgeopt_board: "LeasedBoard", request: pytest.FixtureRequest
) -> "Measured":
    """Give the deployment's figures: samples, peak memory, parity."""
    from edgeopt.hil.baseline import Baselines
    from edgeopt.hil.measured import Measured
    from edgeopt.measure import summarize_samples

    config, node, story = request.config, request.node, _boards(request).story

    def note(name: str, value: str) -> None:
        node.user_properties.append((name, value))
        story.append(f"{node.nodeid}: {name}: {value}")

    median = summarize_samples(deployment.first.samples_ns).p50
    unit = "instructions" if deployment.first.kind == "emulated" else "ns"
    node.user_properties += [
        ("peak", str(deployment.first.memory.peak)),
        ("median", f"{median:.0f} {unit}"),
        ("fence", str(deployment.report.fence)),
        ("boot", deployment.first.boot_id),
    ]
    folder = config.rootpath / config.getini("edgeopt_baselines")
    return Measured(
        deployment=deployment,
        target=edgeopt_board.target.name,
        facts=edgeopt_board.facts,
        baselines=Baselines(folder, update=bool(config.getoption("--update-baselines"))),
        launch_count=int(config.getini("edgeopt_launches")),
        note=note,
    )


@pytest.fixture
def compare(request: pytest.FixtureRequest) -> "Callable[..., Comparison]":
    """Return a function that lets two deployments take turns on the board and compares them."""
    boards = _boards(request)

    def compare_deployments(
        base: "Deployment", other: "Deployment", *, blocks: int = 8, tolerance: float = 0.0
    ) -> "Comparison":
        found = boards.deployments.compare(base, other, blocks=blocks, tolerance=tolerance)
        request.node.user_properties.append(("comparison", str(found)))
        boards.story.append(f"{request.node.nodeid}: {found}")
        return found

    return compare_deployments
