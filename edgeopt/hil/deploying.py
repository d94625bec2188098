"""Deploy models to the board of the tests through the real pipeline, each of them once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

from edgeopt.artifact import Measurement, StageRecord
from edgeopt.cli.places import cache_folder
from edgeopt.cli.request import Request, make_order
from edgeopt.compare import Comparison
from edgeopt.deploy import remove_application
from edgeopt.errors import GATES, ConfigError, DeployFailed, EdgeoptError
from edgeopt.hil.measured import Deployment
from edgeopt.hil.session import BoardSession, LeasedBoard
from edgeopt.interleave import Schedule, Side, take_turns
from edgeopt.job import Deployed, Run
from edgeopt.measure import measure_release
from edgeopt.pipeline import LEASE_SECONDS, deploy
from edgeopt.scratch import scratch
from edgeopt.store import Store
from edgeopt.trial import ROOT, read_samples

#: What @pytest.mark.deploys may say besides the model.
OPTIONS = ("profile", "ram", "flash", "latency", "max_drop", "shapes", "values", "project")


@final
@dataclass(slots=True)
class Deployments:
    """What was deployed in this session, by what was asked for."""

    session: BoardSession
    _made: dict[tuple[object, ...], Deployment] = field(default_factory=dict)
    #: Applications on the board that are there for these tests only.
    _apps: set[str] = field(default_factory=set)

    def deploy(self, model: str | None, options: Mapping[str, Any]) -> Deployment:
        """Deploy a model, or the project's own, and measure it; at the second call find it."""
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise ConfigError(
                f"deploys(...) knows no {unknown[0]}", fix=f"it knows {', '.join(OPTIONS)}"
            )
        key = (model, *sorted((name, repr(value)) for name, value in options.items()))
        if key not in self._made:
            self._made[key] = _deploy(self.session, model, options, self._apps)
        return self._made[key]

    def compare(
        self, base: Deployment, other: Deployment, *, blocks: int, tolerance: float
    ) -> Comparison:
        """Let two deployments take turns on the board, A B B A, and compare them."""
        board = self.session.board()
        first, second = (
            Side(each.release, each.bundle, read_samples(each.samples)[0]) for each in (base, other)
        )
        schedule = Schedule(
            warmup=base.warmup,
            iterations=base.iterations,
            threads=base.threads,
            blocks=blocks,
            between=lambda: board.lease.renew(LEASE_SECONDS),
        )
        with scratch() as folder:
            return take_turns(
                board,
                first,
                second,
                facts=board.facts,
                schedule=schedule,
                tolerance=tolerance,
                directory=folder,
            )

    def remove(self) -> str:
        """Remove all of it from the board; return what had to stay and why, or nothing."""
        if not self._apps:
            return ""
        apps, why = sorted(self._apps), self.session.broken
        try:
            for each in apps if not why else ():
                remove_application(self.session.board(), each, root=ROOT)
        except EdgeoptError as error:
            why = error.what
        if why:
            return f"left on the board: {', '.join(apps)}: {why}"
        self._apps.clear()
        return ""

    def forget(self) -> None:
        """Forget everything: the board may be another one by now, or have lost its memory."""
        self._made.clear()


def _deploy(
    session: BoardSession, model: str | None, options: Mapping[str, Any], apps: set[str]
) -> Deployment:
    board, wanted = session.board(), session.wanted
    request = Request(
        target=session.found.target.name if wanted.target is None else wanted.target,
        project=wanted.project / options.get("project", "."),
        model=model,
        board=session.found.address,
        ssh_config=wanted.ssh_config,
        **{name: value for name, value in options.items() if name != "project"},
    )
    order = make_order(request)
    # Beside what the board is used for: a test must not change what runs there.
    job = replace(order.job, app=f"test-{order.job.app}"[:64])
    apps.add(job.app)
    run = Run(job, Store(cache_folder()), _say_nothing)
    done = deploy(run, lambda: board, reference=False, held=board.lease)
    if not done.report.kept:
        gate = GATES.get(done.report.exit_code, DeployFailed)
        raise gate(
            f"{job.app} was not kept on {board.name}",
            why=done.report.failure,
            fix=done.report.next_command,
        )
    return _describe(board, run, done)


def _say_nothing(_record: StageRecord) -> None:
    """Leave the story to the report."""


def _describe(board: LeasedBoard, run: Run, done: Deployed) -> Deployment:
    job, row = run.job, done.report.rows[-1]
    if row.measurement is None or row.parity is None:
        raise EdgeoptError("a deployment was kept that was never measured")

    def launch(count: int) -> Sequence[Measurement]:
        feeds, _ = read_samples(done.samples)
        found = []
        for _number in range(count):
            board.lease.renew(LEASE_SECONDS)
            with scratch() as folder:
                measurement, _outputs = measure_release(
                    done.release,
                    done.bundle,
                    board,
                    feeds=feeds,
                    warmup=job.warmup,
                    iterations=job.iterations,
                    threads=job.threads,
                    directory=folder,
                )
            found.append(measurement)
        return found

    return Deployment(
        report=done.report,
        release=done.release,
        bundle=done.bundle,
        samples=done.samples,
        warmup=job.warmup,
        iterations=job.iterations,
        threads=job.threads,
        parity=row.parity,
        first=row.measurement,
        launch=launch,
    )
