import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board import Completed
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import (
    activate_release,
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
    Interrupted,
    RollbackFailed,
)
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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "board"


def test_a_deployed_release_is_current_whole_and_alone(tmp_path: Path, root: Path) -> None:
    bundle = make_bundle(tmp_path / "a")
    release = deploy(bundle, LocalBoard(), root, tmp_path / "w")
    assert link_of(root) == bundle.digest == release.digest
    assert release.previous == ""
    assert release.sent == sum(path.stat().st_size for path in bundle.path.iterdir())
    assert_whole(root, bundle.digest)
    assert leftovers(root) == []
    assert {path.name for path in (root / "objects").iterdir()} == objects_of(bundle)
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_second_deploy_of_the_same_bundle_sends_nothing(tmp_path: Path, root: Path) -> None:
    bundle = make_bundle(tmp_path / "a")
    deploy(bundle, LocalBoard(), root, tmp_path / "w")
    again = deploy(bundle, LocalBoard(), root, tmp_path / "w")
    assert again.sent == 0
    assert again.previous == bundle.digest
    assert link_of(root, "previous") == ""
    history = read_history(LocalBoard(), APP, root=PurePosixPath(root))
    assert [each.digest for each in history] == [bundle.digest]


def test_files_that_two_bundles_share_are_sent_once(tmp_path: Path, root: Path) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    sent: list[str] = []
    deploy(one, LocalBoard(), root, tmp_path / "w")
    stage_bundle(
        two,
        LocalBoard(),
        facts=board_facts(),
        app=APP,
        root=PurePosixPath(root),
        progress=lambda name, _: sent.append(name),
    )
    assert sorted(sent) == ["manifest.json", "weights.bin"]


def test_the_third_deploy_removes_the_first_and_keeps_the_second(
    tmp_path: Path, root: Path
) -> None:
    bundles = [make_bundle(tmp_path / str(seed), seed=seed) for seed in range(3)]
    for bundle in bundles:
        deploy(bundle, LocalBoard(), root, tmp_path / "w")
    status = read_status(LocalBoard(), APP, root=PurePosixPath(root), check=True)
    assert (status.current, status.previous) == (bundles[2].digest, bundles[1].digest)
    assert set(status.releases) == {bundles[1].digest, bundles[2].digest}
    assert (status.state, status.files_good) == ("ready", True)
    assert {path.name for path in (root / "objects").iterdir()} == objects_of(*bundles[1:])


def test_a_rollback_swaps_the_releases_and_is_written_down(tmp_path: Path, root: Path) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    for bundle in (one, two):
        deploy(bundle, LocalBoard(), root, tmp_path / "w")
    place = PurePosixPath(root)
    assert rollback_release(LocalBoard(), APP, root=place).current == one.digest
    assert link_of(root, "previous") == two.digest
    assert rollback_release(LocalBoard(), APP, root=place).current == two.digest
    actions = [(each.action, each.digest) for each in read_history(LocalBoard(), APP, root=place)]
    assert actions == [
        ("deploy", one.digest),
        ("deploy", two.digest),
        ("rollback", one.digest),
        ("rollback", two.digest),
    ]


def test_a_rollback_without_a_previous_release_changes_nothing(tmp_path: Path, root: Path) -> None:
    bundle = make_bundle(tmp_path / "a")
    deploy(bundle, LocalBoard(), root, tmp_path / "w")
    with pytest.raises(RollbackFailed, match="no previous release"):
        rollback_release(LocalBoard(), APP, root=PurePosixPath(root))
    assert link_of(root) == bundle.digest


def test_a_rollback_to_a_damaged_release_is_refused(tmp_path: Path, root: Path) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    for bundle in (one, two):
        deploy(bundle, LocalBoard(), root, tmp_path / "w")
    damage(root / "apps" / APP / "releases" / one.digest / "weights.bin")
    with pytest.raises(RollbackFailed, match="damaged"):
        rollback_release(LocalBoard(), APP, root=PurePosixPath(root))
    assert link_of(root) == two.digest


def test_a_staged_release_is_not_current_until_it_is_activated(tmp_path: Path, root: Path) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    deploy(one, LocalBoard(), root, tmp_path / "w")
    staged = stage_bundle(two, LocalBoard(), facts=board_facts(), app=APP, root=PurePosixPath(root))
    assert link_of(root) == one.digest
    assert_whole(root, two.digest)
    activate_release(staged, LocalBoard())
    assert link_of(root) == two.digest


def test_a_discarded_release_leaves_nothing_and_a_current_one_stays(
    tmp_path: Path, root: Path
) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    current = deploy(one, LocalBoard(), root, tmp_path / "w")
    staged = stage_bundle(two, LocalBoard(), facts=board_facts(), app=APP, root=PurePosixPath(root))
    assert discard_release(staged, LocalBoard())
    assert {path.name for path in (root / "objects").iterdir()} == objects_of(one)
    assert not discard_release(current, LocalBoard())
    assert_whole(root, one.digest)


def test_collecting_keeps_what_it_is_told_to_keep(tmp_path: Path, root: Path) -> None:
    bundles = [make_bundle(tmp_path / str(seed), seed=seed) for seed in range(2)]
    place = PurePosixPath(root)
    staged = [
        stage_bundle(each, LocalBoard(), facts=board_facts(), app=APP, root=place)
        for each in bundles
    ]
    activate_release(staged[0], LocalBoard(), keep=[staged[1].digest])
    assert_whole(root, bundles[1].digest)
    activate_release(staged[0], LocalBoard())
    assert read_status(LocalBoard(), APP, root=place).releases == (bundles[0].digest,)


def test_another_applications_release_keeps_its_objects(tmp_path: Path, root: Path) -> None:
    place = PurePosixPath(root)
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    stage_bundle(one, LocalBoard(), facts=board_facts(), app="other", root=place)
    deploy(two, LocalBoard(), root, tmp_path / "w")
    assert objects_of(one, two) == {path.name for path in (root / "objects").iterdir()}


@pytest.mark.parametrize(
    ("mode", "error", "words"),
    [
        ("nan", DeployFailed, "not finite"),
        ("wrong", DeployFailed, "differs by"),
        ("fails", DeployFailed, "the arena cannot be mapped"),
        ("crashes", DeployFailed, "SIGSEGV"),
        ("noise", DeployFailed, "report cannot be read"),
        ("illegal", BoardIncompatible, "asimd"),
        ("killed", DeployFailed, "the kernel did not"),
    ],
)
def test_a_bad_smoke_run_leaves_the_old_release_and_nothing_of_the_new(
    tmp_path: Path, root: Path, mode: str, error: type[EdgeoptError], words: str
) -> None:
    good = make_bundle(tmp_path / "a")
    deploy(good, LocalBoard(), root, tmp_path / "w")
    with pytest.raises(error, match=words):
        deploy(make_bundle(tmp_path / "b", mode=mode), LocalBoard(), root, tmp_path / "w")
    assert link_of(root) == good.digest
    assert leftovers(root) == []
    assert {path.name for path in (root / "objects").iterdir()} == objects_of(good)


def test_a_first_deploy_that_fails_leaves_no_link(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DeployFailed):
        deploy(make_bundle(tmp_path / "b", mode="nan"), LocalBoard(), root, tmp_path / "w")
    assert link_of(root) == ""
    assert read_status(LocalBoard(), APP, root=PurePosixPath(root)).state == "empty"


def test_a_release_that_fails_after_the_switch_is_taken_back(tmp_path: Path, root: Path) -> None:
    bundles = [make_bundle(tmp_path / str(seed), seed=seed) for seed in range(3)]
    for each in bundles[:2]:
        deploy(each, LocalBoard(), root, tmp_path / "w")
    place = PurePosixPath(root)
    staged = stage_bundle(bundles[2], LocalBoard(), facts=board_facts(), app=APP, root=place)

    def health() -> None:
        assert link_of(root) == bundles[2].digest
        raise BudgetExceeded("too slow now")

    with pytest.raises(DeployFailed, match="too slow now"):
        activate_release(staged, LocalBoard(), health=health)
    assert link_of(root) == bundles[1].digest
    assert link_of(root, "previous") == bundles[0].digest
    assert read_history(LocalBoard(), APP, root=place)[-1].action == "restore"


@pytest.mark.parametrize("moment", [1, 2])
def test_a_program_that_fails_once_it_is_current_is_taken_back_and_the_old_one_is_run(
    tmp_path: Path, root: Path, moment: int
) -> None:
    """The smoke run is the first one, the health check the second, what was current the third."""
    runs: list[str] = []

    class Failing(DyingBoard):
        def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
            done = super().run(argv, stdin=stdin, timeout=timeout)
            if "--weights" in argv:
                weights = PurePosixPath(argv[argv.index("--weights") + 1])
                runs.append(weights.parent.name)
            failed = "--weights" in argv and len(runs) == moment
            return dataclasses.replace(done, status=1) if failed else done

    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    deploy(one, LocalBoard(), root, tmp_path / "w")
    with pytest.raises(DeployFailed, match="the device program failed"):
        deploy(two, Failing(LocalBoard()), root, tmp_path / "w")
    assert link_of(root) == one.digest
    assert runs == {1: [two.digest], 2: [two.digest, two.digest, one.digest]}[moment]
    assert_whole(root, one.digest)


def test_a_rollback_after_a_switch_that_was_cut_off_goes_back(tmp_path: Path, root: Path) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    place = PurePosixPath(root)
    for each in (one, two):
        deploy(each, LocalBoard(), root, tmp_path / "w")
    home = root / "apps" / APP
    event = (home / "history.jsonl").read_text().splitlines()[-1]
    (home / "state").write_text(f"switch {two.digest} {one.digest}\n{event}\n")
    found = read_status(LocalBoard(), APP, root=place)
    assert (found.state, found.subject) == ("switching", two.digest)
    assert two.digest[:12] in found.meaning
    assert rollback_release(LocalBoard(), APP, root=place).current == one.digest
    assert link_of(root, "previous") == two.digest
    assert leftovers(root) == []


def test_old_releases_that_cannot_be_removed_fail_no_deploy(tmp_path: Path, root: Path) -> None:
    one, two, three = (make_bundle(tmp_path / str(seed), seed=seed) for seed in range(3))
    for each in (one, two):
        deploy(each, LocalBoard(), root, tmp_path / "w")
    staged = stage_bundle(
        three, LocalBoard(), facts=board_facts(), app=APP, root=PurePosixPath(root)
    )
    apart = tmp_path / "apart"
    copy_tree(root, apart)
    counted = DyingBoard(LocalBoard())
    assert activate_release(staged, counted).left == ""
    shutil.rmtree(root)
    copy_tree(apart, root)
    last = len(counted.calls) - 1

    class Refusing(DyingBoard):
        """Runs nothing of the last script."""

        def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
            if len(self.calls) == last:
                return Completed(tuple(argv), 1, b"", b"read-only file system")
            return super().run(argv, stdin=stdin, timeout=timeout)

    done = activate_release(staged, Refusing(LocalBoard()))
    assert "read-only file system" in done.left
    assert (link_of(root), link_of(root, "previous")) == (three.digest, two.digest)
    found = read_status(LocalBoard(), APP, root=PurePosixPath(root))
    assert set(found.releases) == {one.digest, two.digest, three.digest}
    deploy(three, LocalBoard(), root, tmp_path / "w")
    found = read_status(LocalBoard(), APP, root=PurePosixPath(root))
    assert set(found.releases) == {two.digest, three.digest}
    assert leftovers(root) == []


def test_what_was_never_seen_to_run_is_no_way_back(tmp_path: Path, root: Path) -> None:
    one, two, three = (make_bundle(tmp_path / str(seed), seed=seed) for seed in range(3))
    place = PurePosixPath(root)
    deploy(one, LocalBoard(), root, tmp_path / "w")
    staged = stage_bundle(two, LocalBoard(), facts=board_facts(), app=APP, root=place)

    def vanish() -> None:
        raise BoardUnreachable("the board is gone")

    with pytest.raises(BoardUnreachable):
        activate_release(staged, LocalBoard(), health=vanish)
    found = read_status(LocalBoard(), APP, root=place)
    assert (found.state, found.subject, found.proven) == ("checking", two.digest, False)
    deploy(three, LocalBoard(), root, tmp_path / "w")
    found = read_status(LocalBoard(), APP, root=place)
    assert (found.state, found.meaning) == ("ready", "")
    assert (found.current, found.previous) == (three.digest, one.digest)
    assert set(found.releases) == {one.digest, three.digest}


def test_a_way_back_that_does_not_run_is_said_to_be_none(tmp_path: Path, root: Path) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    deploy(one, LocalBoard(), root, tmp_path / "w")
    staged = stage_bundle(two, LocalBoard(), facts=board_facts(), app=APP, root=PurePosixPath(root))
    weights = root / "apps" / APP / "current" / "weights.bin"
    weights.chmod(0o600)
    weights.write_text("fails\n")

    def health() -> None:
        raise DeployFailed("it hangs")

    with pytest.raises(RollbackFailed, match="or does not run"):
        activate_release(staged, LocalBoard(), health=health)


def test_an_interruption_during_the_smoke_run_sends_nothing_again(
    tmp_path: Path, root: Path
) -> None:
    class Impatient(DyingBoard):
        def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
            self.calls.append("get")
            raise Interrupted("Ctrl-C")

    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    deploy(one, LocalBoard(), root, tmp_path / "w")
    board = Impatient(LocalBoard())
    with pytest.raises(Interrupted):
        deploy(two, board, root, tmp_path / "w")
    assert board.calls.count("get") == 1
    assert link_of(root) == one.digest
    assert list((root / "runs").iterdir()) == []
    deploy(two, LocalBoard(), root, tmp_path / "w")
    assert leftovers(root) == []


def test_what_a_hostile_board_says_of_itself_is_not_believed(tmp_path: Path, root: Path) -> None:
    bundle = make_bundle(tmp_path / "a")
    deploy(bundle, LocalBoard(), root, tmp_path / "w")
    home = root / "apps" / APP
    (home / "previous").symlink_to("releases/\x1b[31mred")
    evil = home / "releases" / "\x1b[2J"
    evil.mkdir()
    (evil / "sha256sums").touch()
    with (home / "history.jsonl").open("a") as log:
        log.write('{"action":"deploy","digest":"\\u001b[2J","id":"00000000",')
        log.write('"time":"2024-01-01T00:00:00+00:00","version":"1"}\n')
    status = read_status(LocalBoard(), APP, root=PurePosixPath(root))
    assert (status.previous, status.releases) == ("", (bundle.digest,))
    assert len(read_history(LocalBoard(), APP, root=PurePosixPath(root))) == 1


def test_a_release_that_cannot_be_taken_back_says_so(tmp_path: Path, root: Path) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    deploy(one, LocalBoard(), root, tmp_path / "w")
    board = DyingBoard(LocalBoard())
    staged = stage_bundle(two, board, facts=board_facts(), app=APP, root=PurePosixPath(root))

    def health() -> None:
        board.dead = True
        raise DeployFailed("it hangs")

    with pytest.raises(RollbackFailed, match="it hangs"):
        activate_release(staged, board, health=health)


def test_a_bit_flipped_on_the_wire_is_sent_again_once(tmp_path: Path, root: Path) -> None:
    bundle = make_bundle(tmp_path / "a")
    flips = iter([True] + [False] * 100)

    def flip(content: bytes) -> bytes:
        return content[:-1] + bytes([content[-1] ^ 1]) if next(flips) else content

    release = deploy(bundle, DyingBoard(LocalBoard(), spoil=flip), root, tmp_path / "w")
    assert_whole(root, bundle.digest)
    first = sorted(path.name for path in bundle.path.iterdir())[0]
    again = (bundle.path / first).stat().st_size
    assert release.sent == sum(path.stat().st_size for path in bundle.path.iterdir()) + again


def test_a_wire_that_flips_every_time_fails_and_leaves_the_old_release(
    tmp_path: Path, root: Path
) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    deploy(one, LocalBoard(), root, tmp_path / "w")
    board = DyingBoard(LocalBoard(), spoil=lambda content: content[:-1] + b"\xff")
    with pytest.raises(DeployFailed, match="arrived damaged"):
        deploy(two, board, root, tmp_path / "w")
    assert link_of(root) == one.digest
    assert_whole(root, one.digest)
    assert list((root / "objects").glob("*.part")) == []


def test_an_object_damaged_on_disk_is_replaced_while_it_is_current(
    tmp_path: Path, root: Path
) -> None:
    bundle = make_bundle(tmp_path / "a")
    place = PurePosixPath(root)
    deploy(bundle, LocalBoard(), root, tmp_path / "w")
    weights = root / "apps" / APP / "releases" / bundle.digest / "weights.bin"
    damage(weights)
    assert read_status(LocalBoard(), APP, root=place, check=True).files_good is False
    release = stage_bundle(
        bundle, LocalBoard(), facts=board_facts(), app=APP, root=place, recheck=True
    )
    assert release.sent == weights.stat().st_size
    assert_whole(root, bundle.digest)
    assert read_status(LocalBoard(), APP, root=place, check=True).state == "trying"
    deploy(bundle, LocalBoard(), root, tmp_path / "w")
    assert leftovers(root) == []
    assert read_status(LocalBoard(), APP, root=place, check=True).files_good is True


def test_a_release_whose_program_was_damaged_is_repaired_by_deploying_again(
    tmp_path: Path, root: Path
) -> None:
    bundle = make_bundle(tmp_path / "a")
    deploy(bundle, LocalBoard(), root, tmp_path / "w")
    damage(root / "apps" / APP / "releases" / bundle.digest / "edgeopt-run")
    assert deploy(bundle, LocalBoard(), root, tmp_path / "w").sent > 0
    assert_whole(root, bundle.digest)


@pytest.mark.parametrize("name", ["..", "-rf", "a/b", "", "a b", "x'; touch y; echo '", "a" * 65])
def test_a_hostile_name_is_refused(tmp_path: Path, root: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "a")
    with pytest.raises(ConfigError, match="cannot be the name of an application"):
        stage_bundle(bundle, LocalBoard(), facts=board_facts(), app=name, root=PurePosixPath(root))
    assert not root.exists()


@pytest.mark.parametrize("path", ["relative", "/tmp/../etc", "/a\nb", "~user"])
def test_a_hostile_deploy_directory_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="deploy directory"):
        stage_bundle(
            make_bundle(tmp_path / "a"),
            LocalBoard(),
            facts=board_facts(),
            app=APP,
            root=PurePosixPath(path),
        )


def test_a_deploy_directory_with_quotes_and_spaces_is_only_a_name(tmp_path: Path) -> None:
    root = tmp_path / 'it\'s $(touch pwned) "here" *'
    bundle = make_bundle(tmp_path / "a")
    deploy(bundle, LocalBoard(home=tmp_path), root, tmp_path / "w")
    assert_whole(root, bundle.digest)
    assert not (tmp_path / "pwned").exists()


def test_a_home_relative_deploy_directory_starts_at_the_boards_home(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "a")
    release = deploy(bundle, LocalBoard(home=tmp_path), Path("~/.edgeopt"), tmp_path / "w")
    assert release.path.startswith(f"{tmp_path}/.edgeopt/apps/")
    assert_whole(tmp_path / ".edgeopt", bundle.digest)


@pytest.mark.parametrize("where", ["objects", "apps", "runs", f"apps/{APP}"])
def test_a_symbolic_link_in_place_of_a_folder_is_refused(
    tmp_path: Path, root: Path, where: str
) -> None:
    (root / where).parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (root / where).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BoardIncompatible, match="in the way"):
        deploy(make_bundle(tmp_path / "a"), LocalBoard(), root, tmp_path / "w")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_current_link_that_leads_elsewhere_is_not_followed(tmp_path: Path, root: Path) -> None:
    home = root / "apps" / APP
    home.mkdir(parents=True)
    (home / "current").symlink_to("/etc")
    with pytest.raises(DeployFailed, match="points to /etc"):
        deploy(make_bundle(tmp_path / "a"), LocalBoard(), root, tmp_path / "w")


def test_an_upload_in_place_of_which_a_link_lies_writes_nothing_through_it(
    tmp_path: Path, root: Path
) -> None:
    bundle = make_bundle(tmp_path / "a")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (root / "objects").mkdir(parents=True)
    for each in bundle.files:
        (root / "objects" / f"{each.sha256}.part").symlink_to(victim)
    deploy(bundle, LocalBoard(), root, tmp_path / "w")
    assert victim.read_text() == "precious"


def test_what_somebody_left_who_died_asking_for_the_lease_is_removed(
    tmp_path: Path, root: Path
) -> None:
    root.mkdir()
    for name in ("lease.0123", "next.0123", "fence.0123", "fence"):
        (root / name).write_text("1")
    deploy(make_bundle(tmp_path / "a"), LocalBoard(), root, tmp_path / "w")
    assert [path.name for path in root.iterdir() if path.is_file()] == ["fence"]


def test_a_torn_history_line_is_left_out_and_ended(tmp_path: Path, root: Path) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    deploy(one, LocalBoard(), root, tmp_path / "w")
    with (root / "apps" / APP / "history.jsonl").open("a") as log:
        log.write('{"action":"dep')
    deploy(two, LocalBoard(), root, tmp_path / "w")
    history = read_history(LocalBoard(), APP, root=PurePosixPath(root))
    assert [each.digest for each in history] == [one.digest, two.digest]


def test_a_bundle_changed_on_the_host_is_not_sent(tmp_path: Path, root: Path) -> None:
    bundle = make_bundle(tmp_path / "a")
    damage(bundle.path / "weights.bin")
    with pytest.raises(DeployFailed, match="not what its manifest says"):
        deploy(bundle, LocalBoard(), root, tmp_path / "w")


def damage(path: Path) -> None:
    """Flip one byte in place: the object and its link in the release change together."""
    path.chmod(0o700)
    with path.open("r+b") as file:
        file.seek(3)
        byte = file.read(1)
        file.seek(3)
        file.write(bytes([byte[0] ^ 0x20]))
