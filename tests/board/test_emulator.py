"""The emulated board's bookkeeping, without starting one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.board import image
from edgeopt.board.emulator import BoardHandle, list_boards, shell_command, start_board, stop_board
from edgeopt.errors import ConfigError
from edgeopt.target import Cluster, Emulation, Isa, Target


def make_handle(folder: Path, pid: int) -> BoardHandle:
    return BoardHandle(
        name=folder.name,
        target="rpi4",
        pid=pid,
        port=2222,
        cpu="cortex-a72",
        ram=1 << 30,
        ram_asked=1 << 30,
        icount=True,
        image="abc",
        image_path=folder,
        boot_seconds=3.5,
    )


def make_target(machine: str, cpu: str | None) -> Target:
    return Target(
        name="some",
        title="some",
        isa=Isa(machine=machine, features=()),
        cluster=(Cluster(core="generic", count=1),),
        emulation=Emulation(cpu=cpu) if cpu else None,
    )


def test_only_a_process_that_is_this_boards_own_counts_as_running(tmp_path: Path) -> None:
    folder = tmp_path / "boards" / "rpi4"
    folder.mkdir(parents=True)
    program = "print('up', flush=True); input()"
    argv = [sys.executable, "-c", program, "-pidfile", str(folder / "pid")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        # The kernel shows a command line only a moment after Popen returns.
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        # This test's own process has the number of a board that is gone.
        for pid, runs in ((process.pid, True), (os.getpid(), False), (2**22 + 1, False)):
            handle = make_handle(folder, pid)
            (folder / "state.json").write_text(handle.model_dump_json())
            assert list_boards(cache=tmp_path) == ((handle,) if runs else ())
        (folder / "state.json").write_text("{not a state")
        assert list_boards(cache=tmp_path) == ()
        # Without a state, as when the one that started it was killed, it can still be stopped.
        (folder / "pid").write_text(f"{process.pid}\n")
        assert stop_board("rpi4", cache=tmp_path)
        assert process.wait(10) != 0
    assert not stop_board("rpi4", cache=tmp_path)
    assert not (folder / "state.json").exists()


def test_stopping_what_was_never_started_is_no_error(tmp_path: Path) -> None:
    assert not stop_board("rpi4", cache=tmp_path)
    assert list_boards(cache=tmp_path) == ()


@pytest.mark.parametrize("name", ["../x", "", "a/b", "images", "-x", "a" * 65])
def test_a_name_cannot_leave_the_cache(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name an emulated board"):
        stop_board(name, cache=tmp_path)


@pytest.mark.parametrize(
    ("machine", "cpu"), [("aarch64", None), ("arm", "cortex-a7"), ("x86_64", None)]
)
def test_a_target_without_an_emulated_board_says_what_to_do(
    tmp_path: Path, machine: str, cpu: str | None
) -> None:
    with pytest.raises(ConfigError, match="no emulated board for some") as caught:
        start_board(make_target(machine, cpu), cache=tmp_path)
    assert "--board" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_the_shell_command_checks_the_pinned_key(tmp_path: Path) -> None:
    words = shell_command(make_handle(tmp_path, 1))
    assert words[0] == "ssh"
    assert "StrictHostKeyChecking=yes" in words
    assert f"UserKnownHostsFile={tmp_path}/known_hosts" in words


def test_missing_programs_are_named_with_the_packages_that_carry_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    tools = {"no-such-program": "some-package", "nor-this": "another-package"}
    with pytest.raises(ConfigError, match="no-such-program, nor-this") as caught:
        image.check_tools(tools)
    assert caught.value.fix == (
        "sudo apt-get install -y --no-install-recommends another-package some-package"
    )


def test_the_recipe_names_the_image() -> None:
    assert image.recipe_digest() == image.recipe_digest()
    assert len(image.recipe_digest()) == 16
