"""What the plugin is made of: needs, boards by name, baselines, and launches that take turns."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.artifact import Release
from edgeopt.board import Board, Completed, Kind
from edgeopt.board.local import LocalBoard
from edgeopt.board.procfs import Processor
from edgeopt.compare import Comparison
from edgeopt.deploy import read_status, stage_bundle
from edgeopt.errors import ConfigError, MeasurementNoisy
from edgeopt.hil.baseline import Baseline, Baselines, Setting, compare_baselines
from edgeopt.hil.measured import Deployment, Measured
from edgeopt.hil.needs import unmet
from edgeopt.hil.session import Wanted, find_board
from edgeopt.interleave import Schedule, Side, take_turns
from edgeopt.job import Samples
from tests.deploy.kit import APP, board_facts, make_bundle, samples_of
from tests.samples import bundle, measurement, parity, report

A72 = Processor(number=0, core="cortex-a72", part="0x41 0xd08", features=("asimd",))
FACTS = board_facts(
    machine="aarch64", ram_total=440 << 20, free=2 * 10**9, glibc="2.36", processors=(A72,) * 4
)


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        ("neon", ""),
        ("asimd", ""),
        ("dotprod", "no dotprod"),
        ("asimddp", "no asimddp"),
        # What is sold as 512 MB has less for programs.
        ("ram>=512MB", ""),
        ("ram >= 1GB", "461 MB of memory, 1 GB are needed"),
        ("free>=2GB", ""),
        ("free>=2.1GB", "2 GB of free storage, 2.1 GB are needed"),
        ("cores>=4", ""),
        ("cores>=5", "4 cores, 5 are needed"),
        ("glibc>=2.31", ""),
        ("glibc>=2.37", "glibc 2.36"),
        ("glibc>=2.4", ""),
        ("aarch64", ""),
        ("x86_64", "the board is aarch64, not x86_64"),
        ("latency", "figures here are emulated"),
        ("device", "figures here are emulated"),
    ],
)
def test_a_need_is_met_or_says_what_there_is_instead(need: str, reason: str) -> None:
    found = unmet([need], FACTS, "emulated")
    assert len(found) == bool(reason)
    assert reason in "".join(found)


def test_a_real_board_has_latency_and_this_machine_is_no_device() -> None:
    assert unmet(["latency", "device"], FACTS, "board") == ()
    assert len(unmet(["latency", "device"], FACTS, "native")) == 1


@pytest.mark.parametrize("need", ["dotprd", "ram>512MB", "ram>=lots", "cores>=four", "glibc>=new"])
def test_a_need_that_nobody_can_have_is_a_mistake_and_no_skip(need: str) -> None:
    with pytest.raises(ConfigError, match="needs"):
        unmet([need], FACTS, "board")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "edgeopt.toml").write_text(
        'app = "a"\nmodel = "m.onnx"\n[boards]\nrpi4 = "pi@desk"\n'
        'rpi3 = "pi@twice"\nrpi5 = "pi@twice"\n'
    )
    return tmp_path


@pytest.mark.parametrize(
    ("board", "target", "found"),
    [
        ("rpi4", None, ("rpi4", "pi@desk")),
        ("rpi-zero2w", None, ("rpi-zero2w", None)),
        ("pi@desk", None, ("rpi4", "pi@desk")),
        ("pi@elsewhere", "rpi4", ("rpi4", "pi@elsewhere")),
        ("emulated", "rpi5", ("rpi5", "emulated")),
        # An alias of ~/.ssh/config may be called like a target.
        ("rpi4", "rpi5", ("rpi5", "rpi4")),
    ],
)
def test_a_board_is_found_by_target_by_address_or_by_both(
    project: Path, board: str, target: str | None, found: tuple[str, str | None]
) -> None:
    seen = find_board(Wanted(board=board, target=target, project=project))
    assert (seen.target.name, seen.address) == found


def test_an_address_of_two_targets_must_say_which(project: Path) -> None:
    with pytest.raises(ConfigError, match="which kind of device"):
        find_board(Wanted(board="pi@twice", target=None, project=project))


SETTING = Setting(
    target="rpi4",
    kind="board",
    board="pi@desk",
    device="Raspberry Pi 4 Model B",
    processors=("0x41 0xd08",) * 4,
    ram=10**9,
    governors=("performance",),
    threads=4,
    warmup=10,
    iterations=3,
)


def make_baseline(nanoseconds: int, **changes: object) -> Baseline:
    return Baseline(
        setting=SETTING.model_copy(update=changes),
        launches=((nanoseconds, nanoseconds + 9, nanoseconds + 4),) * 5,
        peak=1,
        digest="d",
        kernel="k",
        temperature_c=None,
        version="v",
        created="c",
    )


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("board", "pi@window", "board was pi@desk, is pi@window"),
        ("kind", "emulated", "kind was board, is emulated"),
        ("governors", ("ondemand",), r"was performance \(1\), is ondemand \(1\)"),
        ("governors", (), "is nothing"),
        ("threads", 1, "threads was 4, is 1"),
        ("processors", ("0x41 0xd08",) * 2, r"0xd08 \(4\), is 0x41 0xd08 \(2\)"),
    ],
)
def test_a_baseline_of_another_setting_is_refused_by_what_differs(
    field: str, value: object, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        compare_baselines(make_baseline(1000), make_baseline(1000, **{field: value}))


def test_a_baseline_of_the_same_setting_is_compared() -> None:
    base = make_baseline(100_000)
    assert compare_baselines(base, make_baseline(102_000)).verdict == "inconclusive"
    assert compare_baselines(base, make_baseline(104_000)).verdict == "slower"
    assert compare_baselines(base, make_baseline(90_000)).verdict == "faster"


def test_a_baseline_is_read_as_it_was_written_and_anything_else_is_refused(tmp_path: Path) -> None:
    store = Baselines(tmp_path)
    path = store.write("first", make_baseline(5))
    assert path == tmp_path / "rpi4" / "first.json"
    assert store.read("rpi4", "first") == make_baseline(5)
    with pytest.raises(ConfigError, match="there is no baseline 'second' for rpi4"):
        store.read("rpi4", "second")
    for damage in ('{"launches": []}', "not json", path.read_text().replace('"peak"', '"peek"')):
        path.write_text(damage)
        with pytest.raises(ConfigError, match="is not a baseline"):
            store.read("rpi4", "first")
    with pytest.raises(ConfigError, match="cannot be the name"):
        store.read("rpi4", "../first")


class Watched:
    """This machine, by another kind, with the digest of every release whose program it runs."""

    def __init__(self, kind: Kind = "native") -> None:
        self._inner: Board = LocalBoard()
        self.kind: Kind = kind
        self.name = "watched"
        self.launched: list[str] = []

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        programs = [word for word in argv if word.endswith("/edgeopt-run")]
        self.launched += [PurePosixPath(each).parent.name for each in programs]
        return self._inner.run(argv, stdin=stdin, timeout=timeout)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        self._inner.put(local, remote, offset=offset, timeout=timeout)

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        self._inner.get(remote, local, limit=limit, timeout=timeout)

    def close(self) -> None:
        pass


def compare_two(board: Watched, folder: Path, *, mode: str = "good", blocks: int = 2) -> Comparison:
    """Let two bundles take turns; the board's names for them become A and B."""
    root, facts = PurePosixPath(folder / "board"), board_facts()
    sides, names = [], {}
    for name, kind in (("A", "good"), ("B", mode)):
        bundle = make_bundle(folder / name, mode=kind, seed=ord(name))
        release = stage_bundle(bundle, board, facts=facts, app=APP, root=root)
        sides.append(Side(release, bundle, {"x": samples_of(2)}))
        names[bundle.digest] = name
    renewed: list[bool] = []
    found = take_turns(
        board,
        *sides,
        facts=facts,
        schedule=Schedule(
            warmup=0,
            iterations=4,
            threads=1,
            blocks=blocks,
            between=lambda: renewed.append(True),
        ),
        directory=folder / "w",
    )
    board.launched = [names[each] for each in board.launched]
    assert len(renewed) == len(board.launched)
    assert read_status(board, APP, root=root).releases == ()
    return found


def test_two_releases_take_turns_there_and_back_and_leave_nothing(tmp_path: Path) -> None:
    board = Watched()
    found = compare_two(board, tmp_path, blocks=4)
    assert "".join(board.launched) == "ABBA" * 4
    # The script says the same times for both.
    assert (found.ratio, found.verdict, found.count) == (1.0, "inconclusive", 4)


def test_where_instructions_are_counted_three_launches_are_enough(tmp_path: Path) -> None:
    board = Watched(kind="emulated")
    found = compare_two(board, tmp_path)
    assert "".join(board.launched) == "ABBAAB"
    assert not found.reasons


def test_a_launch_that_was_throttled_leaves_no_verdict(tmp_path: Path) -> None:
    found = compare_two(Watched(), tmp_path, mode="hot", blocks=4)
    assert found.verdict == "inconclusive"
    assert found.reasons == ("the clock fell from 1500 MHz to 600 MHz",)


def measured(count: int, kind: str = "board") -> Measured:
    first = measurement().model_copy(
        update={"kind": kind, "samples_ns": tuple(range(1_000_000, 1_000_000 + count))}
    )
    deployment = Deployment(
        report=report(),
        release=Release(board="b", kind="board", app="a", digest="d", path="/p"),
        bundle=bundle(),
        samples=Samples(path=Path(), sha256="", count=1, labelled=False),
        warmup=1,
        iterations=count,
        threads=1,
        parity=parity(),
        first=first,
        launch=lambda _count: [],
    )
    return Measured(
        deployment=deployment,
        target="rpi4",
        facts=board_facts(),
        baselines=Baselines(Path()),
        launch_count=1,
        note=lambda _name, _value: None,
    )


def test_a_percentile_that_the_samples_do_not_support_is_an_error_and_no_guess() -> None:
    assert measured(299).p99 == pytest.approx(1.000298)
    with pytest.raises(MeasurementNoisy, match="298 samples support no 99th percentile"):
        _ = measured(298).p99
    with pytest.raises(pytest.skip.Exception, match="not a latency"):
        _ = measured(299, "emulated").p99
