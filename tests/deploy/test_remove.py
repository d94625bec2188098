"""Removing an application: all of it, and nothing of its neighbours."""

from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board.local import LocalBoard
from edgeopt.deploy import deploy_bundle, read_status, remove_application
from edgeopt.errors import ConfigError, DeployFailed
from tests.deploy.kit import APP, board_facts, deploy, link_of, make_bundle, objects_of, smoke_of


def test_an_application_goes_with_all_its_releases_and_what_only_they_needed(
    tmp_path: Path,
) -> None:
    root, board = tmp_path / "board", LocalBoard()
    kept = make_bundle(tmp_path / "kept")
    gone = [make_bundle(tmp_path / f"gone{seed}", seed=seed) for seed in (1, 2)]
    deploy(kept, board, root, tmp_path / "w")
    # One of them has the very release that the neighbour runs.
    for each in (*gone, kept):
        deploy_bundle(
            each,
            board,
            facts=board_facts(),
            app="test-questions",
            root=PurePosixPath(root),
            smoke=smoke_of(),
            directory=tmp_path / "w",
        )
    remove_application(board, "test-questions", root=PurePosixPath(root))
    assert [each.name for each in (root / "apps").iterdir()] == [APP]
    assert {each.name for each in (root / "objects").iterdir()} == objects_of(kept)
    assert link_of(root) == kept.digest
    assert read_status(board, APP, root=PurePosixPath(root), check=True).files_good is True
    remove_application(board, "test-questions", root=PurePosixPath(root))


def test_what_is_no_application_is_not_removed(tmp_path: Path) -> None:
    root, board = tmp_path / "board", LocalBoard()
    deploy(make_bundle(tmp_path / "kept"), board, root, tmp_path / "w")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (root / "apps" / "linked").symlink_to(outside)
    with pytest.raises(DeployFailed, match="could not remove linked"):
        remove_application(board, "linked", root=PurePosixPath(root))
    with pytest.raises(ConfigError):
        remove_application(board, "../apps", root=PurePosixPath(root))
    assert (outside / "precious").exists()
