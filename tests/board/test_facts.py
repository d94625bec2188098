"""One question, one answer: facts of this machine, of a scripted one, and the file of a target."""

import datetime
import os
import platform
import tomllib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board import Completed, Kind
from edgeopt.board.facts import probe_target, read_facts
from edgeopt.board.local import LocalBoard
from edgeopt.board.procfs import BoardFacts
from edgeopt.errors import BoardIncompatible
from edgeopt.target import Target
from edgeopt.testing import ScriptedBoard, answer
from tests.board.test_procfs import ELF, PI4_64, TWO_KINDS

SECTIONS = {
    "machine": "aarch64",
    "kernel": "Linux 6.6.31+rpt-rpi-v8",
    "program": ELF.format(cls="02", low="b7"),
    "model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "cpuinfo": PI4_64,
    "meminfo": "MemTotal: 945364 kB\nMemFree: 500000 kB\nMemAvailable: 700000 kB\n",
    "boot": "0e1b9b67-5b0c-4a43-9a0c-3d1c27a3a001",
    "uptime": "1234.56 4000.00",
    "page": "4096",
    "glibc": "glibc 2.36",
    "folder": "/home/pi",
    "writable": "yes",
    "space": "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/root 9 1 8 1% /",
    "mounts": "/dev/root / ext4 rw,noatime 0 0",
    "caches": "cpu0 1 Data 32K 0\ncpu0 1 Instruction 48K 0\ncpu0 2 Unified 1024K 0-3",
    "clocks": "1800000 ondemand: 0 1 2 3",
    "temperatures": "cpu-thermal 48686",
    "end": "",
}


def board_of(**changes: str | None) -> ScriptedBoard:
    """Make a board whose answer has these sections changed, or left out."""
    sections = {**SECTIONS, **changes}
    text = "\n".join(f"@@edgeopt {k}\n{v}" for k, v in sections.items() if v is not None)
    recorder = Recorder()
    read_facts_of(recorder)
    return ScriptedBoard({recorder.asked: answer("noise\n" + text)}, name="pi")


class Recorder:
    """A board that remembers the command and answers nothing."""

    name = "recorder"
    kind: Kind = "board"
    asked: tuple[str, ...] = ()

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        self.asked = tuple(argv)
        return answer()

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        raise AssertionError

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


def read_facts_of(board: Recorder) -> None:
    with pytest.raises(BoardIncompatible, match="the answer ends early"):
        read_facts(board)


def test_a_raspberry_pi_says_what_it_is_in_one_round_trip() -> None:
    board = board_of()
    facts = read_facts(board)
    assert len(board.calls) == 1
    assert (facts.machine, facts.cores, facts.glibc) == ("aarch64", 4, "2.36")
    assert facts.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert (facts.ram_total, facts.ram_available) == (945364 * 1024, 700000 * 1024)
    assert (facts.free, facts.writable, facts.executable) == (8192, True, True)
    assert facts.temperatures == {"cpu-thermal": 48686}
    assert facts.governors == ("ondemand",)
    assert facts.processors[3].max_khz == 1_800_000
    assert facts.processors[0].caches[2].shared_by == (0, 1, 2, 3)
    assert BoardFacts.model_validate_json(facts.model_dump_json()) == facts


def test_only_features_that_every_processor_has_count() -> None:
    facts = read_facts(board_of(cpuinfo=TWO_KINDS))
    assert facts.features == ("fp", "asimd", "asimddp")


def test_a_system_without_glibc_and_one_with_pages_as_smaps_tells() -> None:
    facts = read_facts(board_of(glibc="", page="16 kB"))
    assert (facts.glibc, facts.page_size) == ("", 16384)
    assert 'linkage = "static"' in probe_target(facts, name="x")


@pytest.mark.parametrize(
    "changes", [{"meminfo": ""}, {"uptime": ""}, {"page": "?"}, {"end": None}, {"boot": None}]
)
def test_an_answer_that_makes_no_sense_is_an_incompatible_board(
    changes: dict[str, str | None],
) -> None:
    with pytest.raises(BoardIncompatible, match="does not say what it is"):
        read_facts(board_of(**changes))


def test_the_target_of_a_board_loads_and_says_where_each_value_is_from() -> None:
    facts = read_facts(board_of(cpuinfo=PI4_64))
    text = probe_target(facts, name="my-pi", board="pi@lab", on=datetime.date(2026, 1, 2))
    target = Target.model_validate(tomllib.loads(text))
    assert target.name == "my-pi"
    (cluster,) = target.cluster
    assert (cluster.core, cluster.count, cluster.clock) == ("cortex-a72", 4, 1.8e9)
    assert (cluster.l1d, cluster.l2, cluster.l2_shared) == (32768, 1 << 20, True)
    assert target.memory.ram == 945364 * 1024
    assert target.memory.bandwidth is None
    assert target.software.glibc == "2.36"
    assert "# MemTotal of /proc/meminfo, 2026-01-02" in text
    assert text.startswith("# Read from pi@lab on 2026-01-02")


def test_the_fastest_cores_come_first_in_a_target() -> None:
    clocks = "1800000 schedutil: 0-3\n2400000 schedutil: 4-5"
    facts = read_facts(board_of(cpuinfo=TWO_KINDS, clocks=clocks, caches=""))
    target = Target.model_validate(tomllib.loads(probe_target(facts, name="x")))
    assert [(each.core, each.count) for each in target.cluster] == [
        ("cortex-a76", 2),
        ("cortex-a55", 2),
    ]


@pytest.mark.parametrize("model", ['a "quoted" \\ name', "ünï", "two\nlines\t\x01", ""])
def test_whatever_a_board_calls_itself_the_file_stays_valid(model: str) -> None:
    text = probe_target(read_facts(board_of(model=model)), name="x", board="a\nb")
    assert tomllib.loads(text)["name"] == "x"


def test_this_machine_says_what_it_is(tmp_path: Path) -> None:
    facts = read_facts(LocalBoard(home=tmp_path), folder=PurePosixPath("not/yet/there"))
    assert facts.kernel_machine == platform.machine()
    assert facts.cores == os.cpu_count()
    assert facts.page_size == os.sysconf("SC_PAGE_SIZE")
    assert facts.folder == str(tmp_path.resolve())
    assert facts.ram_available <= facts.ram_total
    assert facts.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    Target.model_validate(tomllib.loads(probe_target(facts, name="here")))
