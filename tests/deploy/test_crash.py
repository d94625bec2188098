"""Every state of a deploy meets every fault: the old release runs or the new, never a half."""

import contextlib
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.artifact import Bundle
from edgeopt.board import Board
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import activate_release, read_history, read_status, stage_bundle
from edgeopt.errors import DeployFailed, EdgeoptError
from tests.deploy.kit import (
    APP,
    DyingBoard,
    assert_whole,
    board_facts,
    copy_tree,
    deploy,
    leftovers,
    link_of,
    make_bundle,
    objects_of,
)
from tests.deploy.passing import STATES, Passing

#: More calls, and more commands within scripts, than any deploy makes: the sweep must end before.
ENDLESS = 500
#: What changes something on the board.
CHANGES = ("chmod", "cp", "ln", "mkdir", "mv", "rm", "sync")


@dataclass
class Scene:
    """A board with two releases, and a third bundle to deploy."""

    folder: Path
    template: Path
    bundles: list[Bundle]

    def fresh(self) -> Path:
        """Return the deploy directory as it was before the fault."""
        root = self.folder / "board"
        shutil.rmtree(root, ignore_errors=True)
        return copy_tree(self.template, root)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("crash")
    # Thousands of fsyncs: in memory where the system has such a place.
    memory = Path("/dev/shm")
    quick = memory / f"edgeopt-test-{os.getpid()}" if os.access(memory, os.W_OK) else folder / "s"
    quick.mkdir()
    bundles = [make_bundle(quick / str(seed), seed=seed) for seed in range(3)]
    for each in bundles[:2]:
        deploy(each, LocalBoard(), quick / "template", quick / "work")
    yield Scene(quick, quick / "template", bundles)
    shutil.rmtree(quick)


def attempt(scene: Scene, board: Board, root: Path) -> bool:
    """Deploy the third bundle; return whether it ended well."""
    try:
        deploy(scene.bundles[2], board, root, scene.folder / "work")
    except EdgeoptError:
        return False
    return True


def assert_old_or_new(scene: Scene, root: Path) -> None:
    current = link_of(root)
    assert current in {scene.bundles[1].digest, scene.bundles[2].digest}
    assert_whole(root, current)
    assert len(list(root.glob("objects/*.part"))) <= 1


def install(scene: Scene, board: DyingBoard | LocalBoard, root: Path) -> None:
    """Stage and activate the third bundle, without the smoke run between."""
    place = PurePosixPath(root)
    release = stage_bundle(scene.bundles[2], board, facts=board_facts(), app=APP, root=place)
    activate_release(release, board)


def assert_converged(scene: Scene, root: Path) -> None:
    """What is there is what an undisturbed deploy would have given."""
    old, new = scene.bundles[1:]
    assert (link_of(root), link_of(root, "previous")) == (new.digest, old.digest)
    assert_whole(root, new.digest)
    assert_whole(root, old.digest)
    assert leftovers(root) == []
    assert {path.name for path in (root / "objects").iterdir()} == objects_of(old, new)
    releases = root / "apps" / APP / "releases"
    assert {path.name for path in releases.iterdir()} == {old.digest, new.digest}
    history = read_history(LocalBoard(), APP, root=PurePosixPath(root))
    assert len({each.id for each in history}) == len(history)
    assert history[-1].digest == new.digest


@pytest.mark.parametrize(
    ("moment", "stumbles"),
    [("before", False), ("after", False), ("half", False), ("before", True), ("after", True)],
)
def test_a_board_lost_or_failing_at_any_call_has_the_old_release_or_the_new(
    scene: Scene, moment: str, stumbles: bool
) -> None:
    outcomes = set()
    met = set()
    for number in range(ENDLESS):
        board = DyingBoard(LocalBoard(), at=number, moment=moment, stumbles=stumbles)
        passing = Passing(board)
        root = scene.fresh()
        done = attempt(scene, passing, root)
        if number >= len(board.calls):
            break
        assert_old_or_new(scene, root)
        outcomes.add(link_of(root))
        met.add(passing.states[number])
        deploy(scene.bundles[2], LocalBoard(), root, scene.folder / "work")
        assert_converged(scene, root)
    assert 12 < number < ENDLESS - 1
    assert done
    assert met >= set(STATES)
    # The sweep reached both sides of the switch.
    assert scene.bundles[1].digest in outcomes
    assert stumbles or scene.bundles[2].digest in outcomes


@pytest.fixture
def killing_commands(tmp_path: Path) -> Path:
    """Wrap every changing command: the one whose turn it is kills its whole script."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name in CHANGES:
        real = shutil.which(name)
        assert real is not None
        wrapper = folder / name
        wrapper.write_text(
            "#!/bin/sh\n"
            f'echo "${{0##*/}} $*" >> {folder}/log\n'
            f"read -r turn moment < {folder}/turn\n"
            f"echo $((turn - 1)) $moment > {folder}/turn\n"
            f'if [ "$turn" = 0 ]; then\n'
            f'  if [ "$moment" = after ]; then {real} "$@"; fi\n'
            "  kill -s KILL 0\n"
            "fi\n"
            f'exec {real} "$@"\n'
        )
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_power_cut_at_any_change_within_a_script_has_the_old_release_or_the_new(
    scene: Scene, killing_commands: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    usual = os.environ["PATH"]
    outcomes = []
    seen = set()
    for turn in itertools.count():
        root = scene.fresh()
        (killing_commands / "turn").write_text(f"{turn} {moment}\n")
        monkeypatch.setenv("PATH", f"{killing_commands}{os.pathsep}{usual}")
        board = DyingBoard(LocalBoard(), fragile=True)
        with contextlib.suppress(EdgeoptError):
            install(scene, board, root)
        monkeypatch.setenv("PATH", usual)
        if not board.dead:
            break
        assert_old_or_new(scene, root)
        outcomes.append(link_of(root))
        seen.add(read_status(LocalBoard(), APP, root=PurePosixPath(root)).state)
        install(scene, LocalBoard(), root)
        assert_converged(scene, root)
    assert 30 < turn < ENDLESS
    assert seen == {"ready", "staging", "trying", "switching", "collecting"}
    assert set(outcomes) == {each.digest for each in scene.bundles[1:]}
    # Once switched, never back.
    assert outcomes == sorted(outcomes, key=[each.digest for each in scene.bundles].index)


def test_a_power_cut_while_a_release_is_taken_back_loses_no_other(
    scene: Scene, killing_commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, old, new = scene.bundles
    usual = os.environ["PATH"]
    seen = set()
    for turn in itertools.count():
        root = scene.fresh()
        place = PurePosixPath(root)
        board = DyingBoard(LocalBoard(), fragile=True)
        staged = stage_bundle(new, board, facts=board_facts(), app=APP, root=place)

        def health(turn: int = turn) -> None:
            (killing_commands / "turn").write_text(f"{turn} before\n")
            monkeypatch.setenv("PATH", f"{killing_commands}{os.pathsep}{usual}")
            raise DeployFailed("it fails")

        with pytest.raises(EdgeoptError):
            activate_release(staged, board, health=health)
        monkeypatch.setenv("PATH", usual)
        found = read_status(LocalBoard(), APP, root=place)
        seen.add(found.state)
        assert_old_or_new(scene, root)
        deploy(old, LocalBoard(), root, scene.folder / "work")
        after = read_status(LocalBoard(), APP, root=place)
        assert (after.current, after.state) == (old.digest, "ready")
        # Before it was noted that one goes back, the way back is where one is going.
        begun = found.state == "restoring" or found.current == old.digest
        assert after.previous == (first.digest if begun else "")
        if not board.dead:
            break
    assert 10 < turn < ENDLESS
    assert seen == {"checking", "restoring", "ready"}


def test_what_is_renamed_was_flushed_before_and_its_folder_is_after(
    scene: Scene, killing_commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this a power cut after "deployed" could leave names of empty files."""
    root = scene.fresh()
    (killing_commands / "turn").write_text("-1 before\n")
    monkeypatch.setenv("PATH", f"{killing_commands}{os.pathsep}{os.environ['PATH']}")
    install(scene, LocalBoard(), root)
    log = (killing_commands / "log").read_text().splitlines()
    renames = []
    for number, line in enumerate(log):
        if line.startswith("mv ") and ".tmp-drop-" not in line:
            source, target = line.split()[-2:]
            renames.append((number, source, target))
    assert len(renames) >= 7
    for number, source, target in renames:
        folder = str(Path(target).parent)
        after = next(line for line in log[number + 1 :] if line.startswith("sync"))
        # Every link of a release was flushed as an object; the folder of links is, as a whole.
        if "/.tmp-file" in source:
            assert folder in " ".join(log[number:])
            continue
        assert folder in after.split(), (target, after)
        # A link has no content of its own.
        if Path(target).name not in {"current", "previous"}:
            assert any(line.startswith("sync") and source in line.split() for line in log[:number])


def test_a_sweep_that_breaks_the_current_release_would_be_seen(scene: Scene) -> None:
    root = scene.fresh()
    (root / "apps" / APP / "current" / "weights.bin").unlink()
    with pytest.raises(FileNotFoundError):
        assert_old_or_new(scene, root)
