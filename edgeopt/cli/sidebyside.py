"""edgeopt test: a project's tests on several boards side by side, with a line for each board."""

import subprocess
import sys
import time
import xml.etree.ElementTree as ET  # nosec B405
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgeopt.board.owner import read_number
from edgeopt.cli import options
from edgeopt.errors import BoardUnreachable, ConfigError, visible
from edgeopt.scratch import scratch

#: Exit codes of pytest, and the plugin's for boards that were gone while nothing else failed.
_RESULTS = {0: "passed", 1: "FAILED", 5: "no tests", BoardUnreachable.exit_code: "board gone"}


@dataclass(frozen=True, slots=True)
class Member:
    """One board of the pool, and its kind of device."""

    label: str
    target: str
    address: str


@dataclass(frozen=True, slots=True)
class Tested:
    """What the tests say of one board."""

    label: str
    target: str
    result: str
    #: Of pytest's process.
    code: int
    tests: int
    failed: int
    errors: int
    skipped: int
    seconds: float
    #: Of the first test that measured: "25.9 MB", "104000000 instructions"; "" where none did.
    peak: str
    median: str
    #: Of the lease that they ran under; 0 where none measured.
    fence: int


def run_tests(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PYTEST]...", help="What pytest is given, after --."),
    ] = None,
    boards: Annotated[
        str, typer.Option("--boards", help="'all' of edgeopt.toml, or a file: fleet.toml.")
    ] = "all",
    project: options.Folder = Path(),
    ssh_config: options.SshConfig = None,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, max=256, help="How many boards at once.")
    ] = 8,
    as_json: options.Json = False,
) -> None:
    """Run a project's tests on several boards at once, each on all of them."""
    members = list_members(boards, project.resolve())
    extra = [] if ssh_config is None else ["--board-ssh-config", str(ssh_config.absolute())]
    with scratch() as folder:
        runs = [
            _Run(each, project, [*extra, *(arguments or [])], folder / f"{number}")
            for number, each in enumerate(members)
        ]
        with ThreadPoolExecutor(parallel) as pool:
            try:
                found = list(pool.map(_Run.go, runs))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for each in runs:
                    each.end()
                raise
    _print(found, as_json=as_json)
    codes = {each.code for each in found} - {0}
    raise typer.Exit(1 if codes - {BoardUnreachable.exit_code} else max(codes, default=0))


def list_members(boards: str, project: Path) -> list[Member]:
    """Return the boards of edgeopt.toml ("all"), or of a fleet's file."""
    from edgeopt.fleet import load_fleet
    from edgeopt.project import FILE, load_project

    if boards == "all":
        named = load_project(project).boards if (project / FILE).is_file() else {}
        if named:
            return [Member(target, target, address) for target, address in named.items()]
        raise ConfigError(
            f"edgeopt.toml in {project} names no boards",
            fix='add [boards] with rpi4 = "pi@host", or name a file: --boards fleet.toml',
        )
    fleet = load_fleet(Path(boards))
    groups = fleet.groups().items()
    return [Member(each.label, target, each.address) for target, group in groups for each in group]


@dataclass(slots=True)
class _Run:
    """One process of pytest, for one board."""

    member: Member
    project: Path
    arguments: Sequence[str]
    place: Path
    process: "subprocess.Popen[str] | None" = None
    over: bool = False

    def go(self) -> Tested:
        """Run it to its end; what it printed is shown where it did not pass."""
        junit = self.place.with_suffix(".xml")
        argv = [sys.executable, "-m", "pytest", "-p", "edgeopt.pytest_plugin", "-ra"]
        # Its root may lie above, or nowhere.
        argv += ["-o", f"edgeopt_project={self.project.absolute()}"]
        argv += ["-p", "no:cacheprovider", "--board", self.member.address]
        argv += ["--board-target", self.member.target, "--junitxml", str(junit), *self.arguments]
        started = time.monotonic()
        if self.over:
            raise KeyboardInterrupt
        self.process = subprocess.Popen(
            argv,
            cwd=self.project,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        said, _ = self.process.communicate()
        if self.process.returncode != 0:
            typer.echo(f"---- {self.member.label}\n{visible(said)}", err=True)
        return _read(self.member, self.process.returncode, junit, time.monotonic() - started)

    def end(self) -> None:
        """Stop it, or never begin it: Ctrl-C. It gives its board back."""
        self.over = True
        if self.process is not None:
            self.process.terminate()


def _read(member: Member, code: int, junit: Path, seconds: float) -> Tested:
    """Read the figures that pytest wrote; a run that was over before its first test has none."""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    seen: dict[str, str] = {}
    if junit.is_file():
        tree = ET.parse(junit)  # noqa: S314 (our own pytest wrote it just now)  # nosec B314
        suite = tree.find("testsuite")
        if suite is not None:
            counts = {name: int(suite.get(name, "0")) for name in counts}
        for each in tree.iter("property"):
            seen.setdefault(each.get("name") or "", each.get("value") or "")
    return Tested(
        label=member.label,
        target=member.target,
        result=_RESULTS.get(code, f"ended with {code}"),
        code=code,
        tests=counts["tests"],
        failed=counts["failures"],
        errors=counts["errors"],
        skipped=counts["skipped"],
        seconds=round(seconds, 1),
        peak=seen.get("peak", ""),
        median=seen.get("median", ""),
        fence=read_number(seen.get("fence", "")),
    )


def _print(found: Sequence[Tested], *, as_json: bool) -> None:
    from edgeopt.report import format_columns
    from edgeopt.units import format_bytes

    if as_json:
        options.print_document({"boards": [asdict(each) for each in found]})
        return
    counted = ("passed", "failed", "errors", "skipped")
    rows: list[tuple[str, ...]] = [
        ("board", "target", "result", *counted, "peak", "median", "time")
    ]
    for each in found:
        passed = each.tests - each.failed - each.errors - each.skipped
        counts = (passed, each.failed, each.errors, each.skipped)
        peak = format_bytes(int(each.peak)) if each.peak.isdecimal() else "-"
        figures = (peak, each.median or "-", f"{each.seconds:.1f} s")
        rows.append((each.label, each.target, each.result, *map(str, counts), *figures))
    typer.echo(format_columns(rows, indent=""))


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("test", context_settings={"allow_interspersed_args": False})(run_tests)
