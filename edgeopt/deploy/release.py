"""Stage a bundle on a board, try it there, make it current, go back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.artifact import Bundle, Release
from edgeopt.board import Board
from edgeopt.board.facts import BoardFacts
from edgeopt.deploy.alive import run_installed
from edgeopt.deploy.delta import deltas_to_come, plan_deltas
from edgeopt.deploy.place import place_of
from edgeopt.deploy.preflight import (
    check_board,
    missing_files,
    stored_files,
    survey_board,
)
from edgeopt.deploy.signature import Signed, install_statement, verify_release
from edgeopt.deploy.status import Status, place_from, read_status
from edgeopt.deploy.switch import (
    assemble_release,
    check_release,
    collect_garbage,
    drop_release,
    prepare_place,
    restore_links,
    switch_release,
    trust_release,
)
from edgeopt.deploy.upload import Progress, find_damaged, upload_files
from edgeopt.errors import (
    BoardIncompatible,
    BoardUnreachable,
    BudgetExceeded,
    DeployFailed,
    EdgeoptError,
    Interrupted,
    LeaseLost,
    RollbackFailed,
)
from edgeopt.program import run_program
from edgeopt.scratch import scratch


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoke:
    """Golden inputs and what they must give: the release's first run, before any switch."""

    #: [S, *shape] for each input.
    feeds: Mapping[str, NDArray[Any]]
    #: [S, *shape] for each output, as onnxruntime computed it on the host.
    expected: Sequence[NDArray[Any]]
    #: Largest |difference| relative to the largest |expected| of that output.
    tolerance: float = 1e-2
    threads: int = 1


def stage_bundle(
    bundle: Bundle,
    board: Board,
    *,
    facts: BoardFacts,
    app: str,
    root: PurePosixPath,
    progress: Progress | None = None,
    recheck: bool = False,
) -> Release:
    """Install a bundle on a board under its digest, without making it current.

    Nothing is sent before the board is known to be able to run it. What is there already is hashed
    there and only sent again when it is damaged; a complete release that was verified since the
    board started is hashed with `recheck` only.
    """
    survey = survey_board(board, root=root, app=app, bundle=bundle)
    check_board(bundle, facts, survey)
    files = stored_files(bundle)
    missing = missing_files(bundle, survey)
    trusted = survey.installed and survey.checked
    if recheck or not trusted:
        present = [each for each in files if each not in missing]
        damaged = find_damaged(board, survey, bundle.digest, present) if present else ()
        missing += tuple(each for each in present if each.sha256 in damaged)
    staging = bool(missing) or not trusted
    with scratch() as drafts:
        deltas = plan_deltas(missing, survey, source=bundle.path, folder=drafts)
        coming = (*missing, *deltas_to_come(deltas))
        prepare_place(board, survey.place, bundle.digest, coming, staging=staging)
        sent = upload_files(
            board, missing, folder=bundle.path, survey=survey, deltas=deltas, progress=progress
        )
    if staging:
        assemble_release(board, survey.place, bundle.digest, files)
    return Release(
        board=board.name,
        kind=board.kind,
        app=app,
        digest=bundle.digest,
        path=str(survey.place.release(bundle.digest)),
        previous=survey.current,
        sent=sent,
    )


def deploy_bundle(
    bundle: Bundle,
    board: Board,
    *,
    facts: BoardFacts,
    app: str,
    root: PurePosixPath,
    smoke: Smoke,
    directory: Path,
    signed: Signed | None = None,
) -> Release:
    """Stage, smoke-run and activate a bundle; local files are written under directory.

    Until the last step, one rename, the release that was current stays so. Running it again
    from any state that a crash left completes it or changes nothing.
    """
    release = stage_bundle(bundle, board, facts=facts, app=app, root=root)
    try:
        smoke_release(release, bundle, board, smoke=smoke, directory=directory)
    except (BoardUnreachable, Interrupted):
        raise
    except EdgeoptError:
        again = stage_bundle(bundle, board, facts=facts, app=app, root=root, recheck=True)
        # Files of an earlier deploy may have been damaged since: then, and only then, retry.
        if again.sent == 0:
            discard_release(again, board)
            raise
        smoke_release(again, bundle, board, smoke=smoke, directory=directory)
        release = again

    def health() -> None:
        smoke_release(release, bundle, board, smoke=smoke, directory=directory)

    activate_release(release, board, signed=signed, health=health)
    return release


def smoke_release(
    release: Release, bundle: Bundle, board: Board, *, smoke: Smoke, directory: Path
) -> None:
    """Run a release once on its golden inputs; wrong or non-finite outputs are a DeployFailed."""
    run = run_program(
        release,
        bundle,
        board,
        feeds=smoke.feeds,
        warmup=0,
        iterations=len(next(iter(smoke.feeds.values()))),
        threads=smoke.threads,
        directory=directory,
    )
    for spec, found, expected in zip(bundle.outputs, run.outputs, smoke.expected, strict=True):
        gap = _relative_gap(found, np.asarray(expected))
        if gap is None or gap > smoke.tolerance:
            raise DeployFailed(
                "the release does not compute what it should; it was not activated",
                why=f"output '{spec.name}' is not finite"
                if gap is None
                else f"output '{spec.name}' differs by {gap:.2g} of its largest value, "
                f"{smoke.tolerance:.2g} is allowed",
                fix="compile it again, or allow more with the profile's tolerance",
            )


def _relative_gap(found: NDArray[Any], expected: NDArray[Any]) -> float | None:
    """Return max |found - expected| / max |expected|; None when a value is not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return None
    gap = float(np.max(np.abs(found.astype(np.float64) - expected), initial=0))
    return gap / max(float(np.max(np.abs(expected), initial=0)), 1e-30)


@dataclass(frozen=True, slots=True)
class Activation:
    """How a release became current."""

    #: Whether the board itself verified its signature.
    verified: bool
    #: Why older releases could not be removed; the next deploy does it. "": they were.
    left: str = ""


def activate_release(
    release: Release,
    board: Board,
    *,
    keep: Sequence[str] = (),
    health: Callable[[], None] | None = None,
    signed: Signed | None = None,
) -> Activation:
    """Make a staged release current, then remove what is neither current, previous nor kept.

    A signed one is verified before, by what the board gives out. Where a board has signers, one
    without a signature is a DeployFailed.

    `health` runs after the switch; when it or the switch fails, the release that was current is
    restored and run once, else RollbackFailed. Activating what is current already changes nothing.
    """
    place = place_of(release)
    before = read_status(board, release.app, root=place.root)
    settled = before.proven and before.state in {"ready", "trying"}
    verified = False
    if signed is not None:
        install_statement(board, place, release.digest, signed)
    try:
        if signed is not None or before.current != release.digest or not settled:
            older = signed is not None and signed.downgrade
            verified = switch_release(
                board,
                place,
                release.digest,
                "deploy",
                downgrade=older,
                check=health is not None,
                damaged=before.files_good is False,
            )
            if health is not None:
                health()
    except (BoardUnreachable, LeaseLost):
        # Either link is in place; running deploy again completes it, unless the board is
        # another one's by now.
        raise
    except EdgeoptError as error:
        _restore(release, board, before, error)
    try:
        collect_garbage(board, place, proven=release.digest, keep=keep)
    except DeployFailed as error:
        # The release is current and runs: saying that its deploy failed would be false.
        return Activation(verified, left=error.why)
    return Activation(verified)


def _restore(release: Release, board: Board, before: Status, error: EdgeoptError) -> None:
    place = place_of(release)
    try:
        after = read_status(board, release.app, root=place.root)
        if after.current != before.current:
            restore_links(board, place, current=before.current, previous=before.previous)
            # A way back that does not lead to something that runs is none.
            if before.current:
                check_release(board, place, before.current)
            if before.current and run_installed(board, place, before.current, free=after.free):
                trust_release(board, place, before.current)
    except EdgeoptError as second:
        raise RollbackFailed(
            f"the release that was current on {board.name} could not be restored, or does not run",
            why=f"{second.why or second.what}; after: {error.what}",
            fix="see 'edgeopt status', then 'edgeopt deploy' again",
        ) from error
    if isinstance(error, DeployFailed | Interrupted):
        raise error
    raise DeployFailed(
        "the release failed after it was activated; the previous one was restored",
        why=f"{error.what}: {error.why}",
        fix=error.fix,
    ) from error


def discard_release(release: Release, board: Board) -> bool:
    """Remove a staged release and its objects; False when it is current or previous, and stays."""
    return drop_release(board, place_of(release), release.digest)


def rollback_release(
    board: Board, app: str, *, root: PurePosixPath, allowed: str | None = None
) -> Status:
    """Make the previous release current again after hashing its files on the board and a run.

    With allowed signers (their lines) it must be signed by one of them.

    What was current becomes the previous one, so that a second rollback undoes the first.
    """
    status = read_status(board, app, root=root)
    if not status.previous or status.previous == status.current:
        raise RollbackFailed(
            f"there is no previous release of '{app}' on {board.name}",
            why="it was deployed once, or never",
            fix="deploy the version that you want",
        )
    place = place_from(status)
    try:
        check_release(board, place, status.previous)
        if allowed is not None:
            verify_release(board, place, status.previous, allowed)
        if run_installed(board, place, status.previous, free=status.free):
            trust_release(board, place, status.previous)
        # It was current before: that it is older is what is asked for.
        switch_release(board, place, status.previous, "rollback", downgrade=True)
    except (DeployFailed, BoardIncompatible, BudgetExceeded) as error:
        raise RollbackFailed(
            f"the previous release of '{app}' cannot be restored; {status.current[:12]} still runs",
            why=error.why or error.what,
            fix="deploy the version that you want",
        ) from error
    return read_status(board, app, root=root)
