"""Deploy and measure over SSH on an emulated board: busybox, little memory, no root."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from edgeopt.artifact import Bundle
from edgeopt.board import Board
from edgeopt.board.emulator import open_emulated, stop_board
from edgeopt.board.facts import BoardFacts, read_facts
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import (
    activate_release,
    deploy_bundle,
    discard_release,
    read_history,
    read_status,
    rollback_release,
    stage_bundle,
)
from edgeopt.errors import (
    BoardIncompatible,
    BoardUnreachable,
    BudgetExceeded,
    ConfigError,
    DeployFailed,
    EdgeoptError,
)
from edgeopt.measure import measure_release
from edgeopt.target import load_target
from tests.deploy.kit import APP, DyingBoard, make_bundle, samples_of, smoke_of

pytestmark = pytest.mark.hil

INSTANCE = "test-deploy"
ROOT = PurePosixPath("~/deploy tests")


@pytest.fixture(scope="module")
def board() -> Iterator[Board]:
    try:
        found = open_emulated(load_target("rpi-zero2w"), instance=INSTANCE)
    except ConfigError as error:
        pytest.skip(f"no emulated board here: {error.what}; run: make board-packages")
    yield found
    found.close()
    stop_board(INSTANCE)


@pytest.fixture(scope="module")
def facts(board: Board) -> BoardFacts:
    return read_facts(board)


def bundle_for_board(folder: Path, **options: Any) -> Bundle:
    made = make_bundle(folder, **options)
    return made.model_copy(update={"machine": "aarch64", "features": ("fp", "asimd")})


def files_below(board: Board, folder: str) -> list[str]:
    done = board.run(["find", folder, "-name", "*"], timeout=60)
    return done.stdout.decode().splitlines()


def test_three_deploys_and_a_rollback_over_ssh(
    tmp_path: Path, board: Board, facts: BoardFacts
) -> None:
    bundles = [bundle_for_board(tmp_path / str(seed), seed=seed) for seed in range(3)]
    for each in bundles:
        deploy_bundle(
            each, board, facts=facts, app=APP, root=ROOT, smoke=smoke_of(), directory=tmp_path
        )
    again = deploy_bundle(
        bundles[2], board, facts=facts, app=APP, root=ROOT, smoke=smoke_of(), directory=tmp_path
    )
    assert again.sent == 0
    assert rollback_release(board, APP, root=ROOT).current == bundles[1].digest
    status = read_status(board, APP, root=ROOT, check=True)
    assert (status.state, status.files_good) == ("ready", True)
    assert set(status.releases) == {each.digest for each in bundles[1:]}
    history = read_history(board, APP, root=ROOT)
    assert [each.action for each in history] == ["deploy", "deploy", "deploy", "rollback"]
    left = files_below(board, "deploy tests")
    assert not [name for name in left if ".tmp-" in name or ".part" in name or "/run-" in name]


def test_outputs_and_samples_come_back_from_the_board(
    tmp_path: Path, board: Board, facts: BoardFacts
) -> None:
    bundle = bundle_for_board(tmp_path / "a", seed=7)
    release = stage_bundle(bundle, board, facts=facts, app="measured", root=ROOT)
    feed = samples_of(3, seed=7)
    measurement, outputs = measure_release(
        release,
        bundle,
        board,
        feeds={"x": feed},
        warmup=1,
        iterations=5,
        threads=1,
        directory=tmp_path / "w",
    )
    np.testing.assert_array_equal(outputs[0], feed)
    assert measurement.kind == "emulated"
    assert measurement.boot_id == facts.boot_id
    assert measurement.invalid == ()
    assert discard_release(release, board)


def test_a_dot_product_build_is_refused_by_a_core_without_it(
    tmp_path: Path, board: Board, facts: BoardFacts
) -> None:
    bundle = bundle_for_board(tmp_path / "a").model_copy(
        update={"features": ("asimd", "asimddp"), "glibc": "2.99"}
    )
    watched = DyingBoard(board)
    with pytest.raises(BoardIncompatible) as caught:
        stage_bundle(bundle, watched, facts=facts, app="refused", root=ROOT)
    assert "asimddp" in caught.value.why
    assert "2.99" in caught.value.why
    assert watched.calls == ["run"]


def test_a_model_beyond_the_boards_memory_is_refused(
    tmp_path: Path, board: Board, facts: BoardFacts
) -> None:
    bundle = bundle_for_board(tmp_path / "a")
    hungry = bundle.footprint.model_copy(update={"arena": facts.ram_total})
    with pytest.raises(BudgetExceeded, match="predicted peak"):
        stage_bundle(
            bundle.model_copy(update={"footprint": hungry}),
            board,
            facts=facts,
            app="refused",
            root=ROOT,
        )


@pytest.mark.parametrize(
    ("mode", "error", "words"),
    [
        ("illegal", BoardIncompatible, "asimd"),
        ("hungry", BudgetExceeded, "the kernel killed it"),
        ("fails", DeployFailed, "the arena cannot be mapped"),
        ("nan", DeployFailed, "not finite"),
    ],
)
def test_a_program_that_fails_on_the_board_is_not_activated(
    tmp_path: Path,
    board: Board,
    facts: BoardFacts,
    mode: str,
    error: type[EdgeoptError],
    words: str,
) -> None:
    bundle = bundle_for_board(tmp_path / "a", mode=mode)
    with pytest.raises(error, match=words):
        deploy_bundle(
            bundle, board, facts=facts, app="bad", root=ROOT, smoke=smoke_of(), directory=tmp_path
        )
    status = read_status(board, "bad", root=ROOT)
    assert (status.state, status.current, status.releases) == ("empty", "", ())


@pytest.mark.parametrize("moment", ["before", "after", "half"])
def test_a_deploy_cut_off_over_ssh_is_completed_by_the_next(
    tmp_path: Path, board: Board, facts: BoardFacts, moment: str
) -> None:
    bundle = bundle_for_board(tmp_path / "a", seed=11, size=300_000)
    rehearsal = DyingBoard(LocalBoard())
    there = PurePosixPath(tmp_path / "here")
    stage_bundle(bundle, rehearsal, facts=facts, app=APP, root=there)
    last = max(number for number, call in enumerate(rehearsal.calls) if call == "put")
    root = ROOT / moment
    cut = DyingBoard(board, at=last, moment=moment)
    with pytest.raises(BoardUnreachable):
        stage_bundle(bundle, cut, facts=facts, app=APP, root=root)
    release = stage_bundle(bundle, board, facts=facts, app=APP, root=root)
    whole = (bundle.path / "weights.bin").stat().st_size
    assert release.sent == {"before": whole, "after": 0, "half": whole - whole // 2}[moment]
    activate_release(release, board)
    assert read_status(board, APP, root=root, check=True).files_good is True
