"""What a board tells of itself around a run, by the script as it runs there."""

from pathlib import Path

import pytest

from edgeopt.board.local import LocalBoard
from edgeopt.board.script import run_script
from edgeopt.board.state import STATE, BoardState, read_state

FLAGS = "devices/platform/soc/soc:firmware/get_throttled"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of /sys."""
    monkeypatch.setenv("EDGEOPT_SYS", str(tmp_path / "sys"))
    return tmp_path / "sys"


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    path.chmod(mode)


def ask() -> BoardState:
    return read_state(run_script(LocalBoard(), STATE, (), doing="read the board's state"))


def provide_vcgencmd(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Put a program of that name in front of all others; it answers what it was asked."""
    write(folder / "vcgencmd", "\n".join(("#!/bin/sh", *lines)), mode=0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_the_governor_of_every_policy_is_read(system: Path) -> None:
    assert ask().governors == ()
    for number, name in ((0, "schedutil"), (4, "performance")):
        write(system / f"devices/system/cpu/cpufreq/policy{number}/scaling_governor", name)
    assert ask().governors == ("schedutil", "performance")


def test_this_machine_has_a_boot_id_and_an_uptime(system: Path) -> None:
    found = ask()
    assert len(found.boot_id) == 36
    assert found.uptime is not None
    assert found.available is not None


def test_where_no_file_has_the_flags_the_boards_own_program_is_asked(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask().throttled is None
    answer = 'if [ "$*" = get_throttled ]; then echo throttled=0x50005; else exit 1; fi'
    provide_vcgencmd(tmp_path / "bin", monkeypatch, answer)
    assert ask().throttled == "0x50005"
    # The device program reads the file, closer to the inferences.
    write(system / FLAGS, "0")
    assert ask().throttled is None


@pytest.mark.parametrize(
    "lines",
    [
        ("echo 'VCHI initialization failed' >&2", "exit 255"),
        ("echo 'error=1 error_msg=\"Command not registered\"'",),
        ("echo throttled=0x0; echo boot 0",),
        ("printf 'throttled=0x\\033[2J\\n'",),
        ("kill -9 $$",),
    ],
)
def test_a_program_that_does_not_answer_leaves_the_flags_unknown_and_the_rest_known(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...]
) -> None:
    provide_vcgencmd(tmp_path / "bin", monkeypatch, *lines)
    found = ask()
    assert found.throttled in (None, "0x0")
    assert len(found.boot_id) == 36
    assert found.uptime is not None
