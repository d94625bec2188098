import contextlib
import platform
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.artifact import Bundle
from edgeopt.board.facts import BoardFacts
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import check_board, survey_board
from edgeopt.deploy.preflight import Survey, missing_files, parse_mount_options, parse_survey
from edgeopt.errors import (
    BoardIncompatible,
    BudgetExceeded,
    ConfigError,
    DeployFailed,
    EdgeoptError,
)
from tests.deploy.kit import APP, DyingBoard, board_facts, deploy, make_bundle, objects_of

#: As the survey script printed it on a Debian board with busybox' df.
RECORDED = """\
root /home/edge/.edgeopt
real /home/edge
writable yes
space /dev/vda                473520    207284    230604  47% /
inodes /dev/vda                124928     11038    113890   9% /
mount /dev/vda / ext4 rw,relatime 0 0
mount proc /proc proc rw,nosuid,nodev,noexec,relatime 0 0
mount tmpfs /home/edge/scratch\\040disk tmpfs rw,noexec 0 0
has aaaa 40006
has bbbb.part 1234
current releases/cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "a")


def recorded() -> Survey:
    return parse_survey(RECORDED.splitlines(), APP)


def test_a_recorded_survey_is_read() -> None:
    survey = recorded()
    assert survey.place.home == PurePosixPath(f"/home/edge/.edgeopt/apps/{APP}")
    assert survey.free_bytes == 230604 * 1024
    assert survey.free_inodes == 113890
    assert survey.mount_options == {"rw", "relatime"}
    assert survey.objects == {"aaaa": 40006, "bbbb.part": 1234}
    assert (survey.writable, survey.installed, survey.current) == (True, False, "c" * 64)


def test_a_survey_without_df_leaves_space_unknown_and_is_no_obstacle(bundle: Bundle) -> None:
    lines = [each for each in RECORDED.splitlines() if not each.startswith(("space", "inodes"))]
    survey = parse_survey(lines, APP)
    assert (survey.free_bytes, survey.free_inodes) == (None, None)
    check_board(bundle, board_facts(), survey)


def test_a_file_system_without_an_inode_limit_is_not_full() -> None:
    lines = RECORDED.replace("124928     11038    113890   9%", "0     0    0   -").splitlines()
    assert parse_survey(lines, APP).free_inodes is None


def test_a_survey_that_was_cut_off_is_refused() -> None:
    with pytest.raises(DeployFailed, match="cannot be read"):
        parse_survey(["writable yes"], APP)


@given(st.lists(st.text(max_size=80), max_size=20))
def test_whatever_a_board_answers_is_read_or_refused(lines: list[str]) -> None:
    with contextlib.suppress(EdgeoptError):
        assert parse_survey([*RECORDED.splitlines(), *lines], APP).place.root.is_absolute()


def test_the_innermost_and_latest_mount_counts() -> None:
    mounts = ["/dev/a / ext4 rw 0 0", "/dev/b /data ext4 ro 0 0", "/dev/c /data ext4 noexec 0 0"]
    assert parse_mount_options(mounts, PurePosixPath("/data/x")) == {"noexec"}
    assert parse_mount_options(mounts, PurePosixPath("/database")) == {"rw"}
    odd = [*mounts, "tmpfs /data/a\\040b tmpfs ro,noexec 0 0"]
    assert parse_mount_options(odd, PurePosixPath("/data/a b/c")) == {"ro", "noexec"}


def test_a_board_that_can_run_the_bundle_passes(bundle: Bundle) -> None:
    check_board(bundle, board_facts(), recorded())


def test_every_problem_is_named_at_once(bundle: Bundle) -> None:
    needy = bundle.model_copy(update={"features": ("asimd", "asimddp", "asimdhp")})
    facts = board_facts(glibc="2.9", ram_available=17_000_000)
    survey = replace(
        recorded(),
        free_bytes=1_000_000,
        free_inodes=3,
        mount_options=frozenset({"ro", "noexec"}),
        obstacles=("/home/edge/.edgeopt/objects",),
    )
    with pytest.raises(BoardIncompatible) as caught:
        check_board(needy, facts, survey)
    for words in (
        "no asimddp, asimdhp",
        "glibc 2.17, the board has 2.9",
        "read-only",
        "noexec",
        "2.06 MB, 1 MB are free",
        "inodes",
        "objects is in the way",
        "predicted peak",
    ):
        assert words in caught.value.why


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (board_facts(machine="riscv64"), "the board is riscv64"),
        (board_facts(features=()), "no asimd"),
        (board_facts(glibc=""), "the board has none"),
        (board_facts(glibc="2.16.1"), "the board has 2.16.1"),
    ],
)
def test_a_processor_or_library_that_does_not_match_is_named(
    bundle: Bundle, facts: BoardFacts, words: str
) -> None:
    with pytest.raises(BoardIncompatible, match=words):
        check_board(bundle, facts, recorded())


def test_a_static_program_needs_no_glibc(bundle: Bundle) -> None:
    static = bundle.model_copy(update={"glibc": ""})
    check_board(static, board_facts(glibc=""), recorded())


def test_too_little_memory_alone_is_a_budget_question(bundle: Bundle) -> None:
    peak = bundle.footprint.peak
    check_board(bundle, board_facts(ram_available=peak + 16_000_000), recorded())
    with pytest.raises(BudgetExceeded, match="predicted peak"):
        check_board(bundle, board_facts(ram_available=peak + 15_999_999), recorded())


def test_an_interrupted_upload_counts_as_space_already_used(bundle: Bundle) -> None:
    weights = next(each for each in bundle.files if each.name == "weights.bin")
    part = replace(recorded(), objects={f"{weights.sha256}.part": weights.size})
    needed = (
        2_000_000
        + 4 * 4096
        + sum(each.stat().st_size for each in bundle.path.iterdir() if each.name != "weights.bin")
    )
    check_board(bundle, board_facts(), replace(part, free_bytes=needed))
    with pytest.raises(BoardIncompatible, match="are free"):
        check_board(bundle, board_facts(), replace(part, free_bytes=needed - 1))


def test_nothing_is_sent_and_nothing_made_when_the_board_cannot_run_it(
    tmp_path: Path, bundle: Bundle
) -> None:
    board = DyingBoard(LocalBoard())
    wrong = bundle.model_copy(update={"machine": "s390x"})
    with pytest.raises(BoardIncompatible):
        deploy(wrong, board, tmp_path / "board", tmp_path / "w")
    assert board.calls == ["run"]
    assert not (tmp_path / "board").exists()


def test_a_survey_finds_what_was_deployed(tmp_path: Path, bundle: Bundle) -> None:
    root = PurePosixPath(tmp_path / "board")
    before = survey_board(LocalBoard(), root=root, app=APP, bundle=bundle)
    assert (before.objects, before.installed, before.current) == ({}, False, "")
    assert len(missing_files(bundle, before)) == 4
    deploy(bundle, LocalBoard(), tmp_path / "board", tmp_path / "w")
    after = survey_board(LocalBoard(), root=root, app=APP, bundle=bundle)
    assert set(after.objects) == objects_of(bundle)
    assert (after.installed, after.current) == (True, bundle.digest)
    assert missing_files(bundle, after) == ()
    assert (after.free_bytes or 0) > 0
    assert board_facts().machine == platform.machine()


def test_a_file_in_place_of_the_deploy_directory_is_in_the_way(
    tmp_path: Path, bundle: Bundle
) -> None:
    (tmp_path / "board").write_text("not a folder")
    with pytest.raises(BoardIncompatible, match="in the way"):
        deploy(bundle, LocalBoard(), tmp_path / "board", tmp_path / "w")


def test_a_bundle_file_with_a_hostile_name_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    evil = bundle.files[0].model_copy(update={"name": "../../.profile"})
    with pytest.raises(ConfigError, match="cannot be the name"):
        deploy(
            bundle.model_copy(update={"files": (*bundle.files, evil)}),
            LocalBoard(),
            tmp_path / "board",
            tmp_path / "w",
        )
    assert not (tmp_path / "board").exists()


def test_a_board_that_cannot_hash_is_refused_before_anything_is_sent(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for each in Path("/usr/bin").iterdir():
        if each.name != "sha256sum":
            (tools / each.name).symlink_to(each)
    monkeypatch.setenv("PATH", str(tools))
    root = tmp_path / "board"
    board = DyingBoard(LocalBoard())
    with pytest.raises(BoardIncompatible, match="it has no sha256sum") as refused:
        deploy(bundle, board, root, tmp_path / "w")
    assert "coreutils or busybox" in (refused.value.fix or "")
    assert (root.exists(), "put" in board.calls) == (False, False)
