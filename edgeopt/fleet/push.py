"""Change many boards: the canaries prove the release, the others get the same bundle."""

import datetime
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from edgeopt.artifact import Bundle, Model
from edgeopt.board import Board
from edgeopt.board.facts import read_facts
from edgeopt.board.lease import hold
from edgeopt.deploy import Smoke, deploy_bundle
from edgeopt.errors import GATES, DeployFailed, EdgeoptError, Interrupted
from edgeopt.fleet.file import Fleet, FleetBoard
from edgeopt.fleet.state import Outcome, Result, StateFile
from edgeopt.job import Run, Samples
from edgeopt.pipeline import LEASE_SECONDS, deploy, plan
from edgeopt.scratch import scratch
from edgeopt.trial import ROOT, make_smoke

#: How sure it must be that too many boards fail, before no further one is begun.
_CONFIDENCE = 0.95

Connect = Callable[[FleetBoard], Board]
#: Told each outcome as soon as it is there.
Progress = Callable[[Outcome], None]


@dataclass(frozen=True, slots=True)
class Group:
    """The boards of one target, canaries first, and the run that makes their release."""

    target: str
    boards: tuple[FleetBoard, ...]
    run: Run


@dataclass(frozen=True, slots=True)
class _Proved:
    """What the boards of a target get: the model that was compiled, and what it is tried with."""

    bundle: Bundle
    model: Model
    samples: Samples


@dataclass(slots=True)
class _Push:
    """One push: what it knows so far."""

    fleet: Fleet
    connect: Connect
    state: StateFile
    progress: Progress
    outcomes: list[Outcome] = field(default_factory=list)

    def note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.state.note(outcome)
        self.progress(outcome)

    @property
    def stopped(self) -> bool:
        """Whether no further board is to be begun."""
        tried = [each for each in self.outcomes if each.result in ("deployed", "failed")]
        failed = sum(each.result == "failed" for each in tried)
        return too_many(failed, len(tried), self.fleet.stop_at)


def too_many(failed: int, tried: int, share: float) -> bool:
    """Say whether so many failures show, with 95 % confidence, that more than a share fails.

    The number of failures is binomial. With a share of 0 the first failure is enough.

    >>> too_many(1, 1, 0.2), too_many(2, 2, 0.2), too_many(20, 200, 0.2), too_many(1, 9, 0.0)
    (False, True, False, True)
    """
    if failed == 0 or share >= 1:
        return False
    at_least = sum(
        math.comb(tried, hits) * share**hits * (1 - share) ** (tried - hits)
        for hits in range(failed, tried + 1)
    )
    return at_least < 1 - _CONFIDENCE


def push_fleet(
    fleet: Fleet, groups: Sequence[Group], *, connect: Connect, state: StateFile, progress: Progress
) -> tuple[Outcome, ...]:
    """Bring every board of a fleet to its target's release; return what became of each, in order.

    Fits and compiles once for each target. A target whose canary fails is left as it is, and so
    is what was not begun when too many boards have failed. Boards that the state says have the
    release are not visited. No board's failure is raised; anything else that goes wrong is.
    """
    push = _Push(fleet, connect, state, progress)
    for group in groups:
        _push_group(push, group)
    place = {each.label: number for number, each in enumerate(fleet.board)}
    return tuple(sorted(push.outcomes, key=lambda each: place[each.name]))


def _push_group(push: _Push, group: Group) -> None:
    if push.stopped:
        _leave(push, group, group.boards, "", "too many boards failed")
        return
    try:
        built = plan(group.run)
    except EdgeoptError as error:
        # Said of the first board only: no board has to do with it.
        push.note(_failed(group, group.boards[0], "", error, 0.0))
        _leave(push, group, group.boards[1:], "", f"{group.target}: {error.what}")
        return
    proved = _prove_all(push, group, _Proved(built.bundle, built.fit.model, built.samples))
    if proved is None:
        return
    digest = proved.bundle.digest
    others = [each for each in group.boards if not each.canary]
    known = [each for each in others if push.state.has(each, digest)]
    for each in known:
        push.note(_outcome(group, each, "same", digest))
    todo = [each for each in others if each not in known]
    if todo:
        smoke = make_smoke(group.run, proved.samples, proved.model)
        _push_others(push, group, todo, proved.bundle, smoke)


def _prove_all(push: _Push, group: Group, planned: _Proved) -> _Proved | None:
    """Deploy to the canaries, one after the other; None when one failed."""
    proved = planned
    for number, each in enumerate(group.boards):
        if not each.canary:
            break
        if push.state.has(each, proved.bundle.digest):
            push.note(_outcome(group, each, "same", proved.bundle.digest))
            continue
        found = _prove(push, group, each, proved.bundle.digest)
        if found is None:
            rest, why = group.boards[number + 1 :], f"canary {each.label} failed"
            _leave(push, group, rest, proved.bundle.digest, why)
            return None
        # What memory it was measured to take may have led to a smaller plan.
        proved = found
    return proved


def _prove(push: _Push, group: Group, board: FleetBoard, digest: str) -> _Proved | None:
    """Deploy to a canary as edgeopt deploy does, measured and compared; None when it failed."""
    started = time.monotonic()
    try:
        done = deploy(
            group.run,
            lambda: push.connect(board),
            reference=False,
            wait=push.fleet.wait / 1e3,
        )
        report = done.report
        if not report.kept:
            gate = GATES.get(report.exit_code, DeployFailed)
            raise gate(report.failure, fix=report.next_command)
    except EdgeoptError as error:
        push.note(_failed(group, board, digest, error, time.monotonic() - started))
        return None
    outcome = _outcome(group, board, "deployed", done.bundle.digest)
    seen = {
        "seconds": time.monotonic() - started,
        "sent": done.release.sent,
        "fence": report.fence,
    }
    push.note(outcome.model_copy(update=seen))
    return _Proved(done.bundle, done.model, done.samples)


def _push_others(
    push: _Push, group: Group, todo: Sequence[FleetBoard], bundle: Bundle, smoke: Smoke
) -> None:
    """Push to boards side by side, and begin no more when too many have failed."""
    queue = deque(todo)
    live = _Live()
    with ThreadPoolExecutor(push.fleet.parallel, thread_name_prefix="edgeopt-fleet") as pool:
        running: set[Future[Outcome]] = set()
        try:
            while queue or running:
                while queue and len(running) < push.fleet.parallel and not push.stopped:
                    visit = _Visit(push, group, queue.popleft(), bundle, smoke, live)
                    running.add(pool.submit(visit.push))
                if not running:
                    break
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    push.note(each.result())
        except BaseException:
            # Ctrl-C: what is under way ends with its connection, and no half of it stays.
            live.close()
            raise
    _leave(push, group, queue, bundle.digest, "too many boards failed")


@dataclass(slots=True)
class _Live:
    """The connections that are open now."""

    boards: set[Board] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: bool = False

    @contextmanager
    def opened(self, connect: Callable[[], Board]) -> Iterator[Board]:
        if self.over:
            raise Interrupted("interrupted")
        board = connect()
        with self.lock:
            self.boards.add(board)
        try:
            yield board
        finally:
            with self.lock:
                self.boards.discard(board)
            board.close()

    def close(self) -> None:
        """Cut every connection, and open no further one."""
        self.over = True
        with self.lock:
            boards = list(self.boards)
        for each in boards:
            each.close()


@dataclass(frozen=True, slots=True)
class _Visit:
    """One board that gets the bundle."""

    fleet: _Push
    group: Group
    board: FleetBoard
    bundle: Bundle
    smoke: Smoke
    live: _Live

    def push(self) -> Outcome:
        """Stage, smoke-run and activate the bundle; a failure is an outcome."""
        started, app = time.monotonic(), self.group.run.job.app
        digest = self.bundle.digest
        try:
            with self.live.opened(lambda: self.fleet.connect(self.board)) as board:
                holding = hold(
                    board,
                    ROOT,
                    owner=f"edgeopt deploy {app}",
                    seconds=LEASE_SECONDS,
                    wait=self.fleet.fleet.wait / 1e3,
                )
                with holding as lease, scratch() as folder:
                    release = deploy_bundle(
                        self.bundle,
                        lease.board,
                        facts=read_facts(lease.board),
                        app=app,
                        root=ROOT,
                        smoke=self.smoke,
                        directory=folder,
                        signed=self.group.run.job.sign(digest),
                    )
        except EdgeoptError as error:
            return _failed(self.group, self.board, digest, error, time.monotonic() - started)
        outcome = _outcome(self.group, self.board, "deployed", digest)
        seconds = time.monotonic() - started
        return outcome.model_copy(
            update={"seconds": seconds, "sent": release.sent, "fence": lease.fence}
        )


def _outcome(group: Group, board: FleetBoard, result: Result, digest: str) -> Outcome:
    return Outcome(
        name=board.label,
        address=board.address,
        target=group.target,
        canary=board.canary,
        result=result,
        digest=digest,
        time=datetime.datetime.now(datetime.UTC),
    )


def _failed(
    group: Group, board: FleetBoard, digest: str, error: EdgeoptError, seconds: float
) -> Outcome:
    why = "; ".join(filter(None, (error.what, error.why)))
    facts = {"code": error.exit_code, "why": why, "fix": error.fix, "seconds": seconds}
    return _outcome(group, board, "failed", digest).model_copy(update=facts)


def _leave(push: _Push, group: Group, boards: Iterable[FleetBoard], digest: str, why: str) -> None:
    for each in boards:
        outcome = _outcome(group, each, "not tried", digest)
        push.note(outcome.model_copy(update={"why": why}))
