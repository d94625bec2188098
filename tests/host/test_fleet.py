"""edgeopt deploy --boards: many boards over real OpenSSH servers, some of which fail."""

import json
import os
import platform
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_signature import make_key
from tests.host.boards_kit import Boards, Done, Home, Host, boards, free_ports, mount
from tests.tiny import write_tiny

__all__ = ["boards", "mount"]

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]

#: Boards of the large test; `make soak-boards` has 200.
COUNT = int(os.environ.get("EDGEOPT_FLEET", "12"))


@pytest.fixture
def host(tmp_path: Path, boards: Boards) -> Iterator[Host]:
    host = Host(write_tiny(tmp_path / "project"), boards.ssh_config)
    yield host
    host.leaves()


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that accepts and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        yield silent.getsockname()[1]


def write_fleet(host: Host, names: list[str], head: str = "") -> Path:
    path = host.project / "fleet.toml"
    lines = "".join(f'[[board]]\naddress = "{name}"\n' for name in names)
    path.write_text(f'target = "x86-64"\npatience = "5s"\n{head}\n{lines}')
    return path


def push(host: Host, path: Path, *options: str) -> tuple[Done, dict[str, Any]]:
    done = host.types("deploy", "--boards", str(path), "--json", *options)
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return done, document


def results(document: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["result"] for each in document["boards"]}


def break_boards(
    boards: Boards, homes: list[Home], hole: int, mount: Callable[[Path, str], None]
) -> list[str]:
    """Make the last tenth of the boards fail, each third in another way; return their names."""
    broken = homes[-max(3, len(homes) // 10) :]
    closed = iter(free_ports(len(broken)))
    text = boards.ssh_config.read_text()
    for number, each in enumerate(broken):
        if number % 3 == 0:
            mount(each.folder, "size=64k")
            continue
        port = next(closed) if number % 3 == 1 else hole
        text = text.replace(f"Port {each.port}\n", f"Port {port}\n")
    boards.ssh_config.write_text(text)
    return [each.name for each in broken]


def test_a_tenth_of_a_fleet_fails_the_rest_is_done_and_a_rerun_goes_on(
    host: Host,
    boards: Boards,
    black_hole: int,
    mount: Callable[[Path, str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    homes = boards.add(COUNT)
    whole = boards.folder / "whole"
    whole.write_text(boards.ssh_config.read_text())
    broken = break_boards(boards, homes, black_hole, mount)
    path = write_fleet(host, [each.name for each in homes], 'stop_at = "40%"\nparallel = 4')
    begun = time.monotonic()
    done, document = push(host, path)
    seconds = time.monotonic() - begun
    assert done.returncode == 13, done.stderr
    found = results(document)
    assert list(found) == [each.name for each in homes]
    assert [name for name, result in found.items() if result == "failed"] == broken
    assert Counter(found.values())["deployed"] == COUNT - len(broken)
    codes = {each["name"]: each["code"] for each in document["boards"]}
    assert {codes[name] for name in broken} == {6, 7}
    assert all(each["why"] and each["fix"] for each in document["boards"] if each["code"])
    digest = document["boards"][0]["digest"]
    good = [each for each in homes if each.name not in broken]
    assert {each.current("tiny") for each in good} == {digest}
    assert not any(each.current("tiny") for each in homes if each.name in broken)
    # Mended, they alone are visited.
    for each in homes:
        if each.name in broken:
            subprocess.run(["umount", "-l", str(each.folder)], capture_output=True, check=False)
    boards.ssh_config.write_text(whole.read_text())
    again_begun = time.monotonic()
    again, document = push(host, path)
    assert again.returncode == 0, again.stderr
    assert Counter(results(document).values()) == {
        "same": len(good),
        "deployed": len(broken),
    }
    assert {each.current("tiny") for each in homes} == {digest}
    with capsys.disabled():
        print(
            f"\n{COUNT} boards, {len(broken)} broken: {seconds:.0f} s, "
            f"mended: {time.monotonic() - again_begun:.0f} s"
        )


def test_a_canary_that_fails_leaves_every_other_board_as_it_is(host: Host, boards: Boards) -> None:
    homes = boards.add(3)
    path = write_fleet(host, [each.name for each in homes])
    text = boards.ssh_config.read_text()
    (closed,) = free_ports(1)
    boards.ssh_config.write_text(text.replace(f"Port {homes[0].port}\n", f"Port {closed}\n"))
    done, document = push(host, path)
    assert done.returncode == 13
    assert list(results(document).values()) == ["failed", "not tried", "not tried"]
    assert document["boards"][0]["code"] == 6
    assert "canary board0 failed" in document["boards"][1]["why"]
    assert not any(each.current("tiny") for each in homes)
    assert list((homes[1].folder).iterdir()) == []
    assert "1 failed, 2 were not tried" in done.stderr


def test_no_further_board_is_begun_when_too_many_fail(host: Host, boards: Boards) -> None:
    home = boards.add(1)[0]
    absent = [f"absent{number}" for number in range(6)]
    for alias, port in zip(absent, free_ports(6), strict=True):
        boards.name(alias, port)
    path = write_fleet(host, [home.name, *absent], "parallel = 1")
    done, document = push(host, path)
    assert done.returncode == 13
    counts = Counter(results(document).values())
    # Two of three, with one in five allowed: that is no chance.
    assert counts == {"deployed": 1, "failed": 3, "not tried": 3} or counts == {
        "deployed": 1,
        "failed": 2,
        "not tried": 4,
    }


def test_ctrl_c_keeps_what_was_done_and_the_rerun_does_the_rest(host: Host, boards: Boards) -> None:
    homes = boards.add(8)
    path = write_fleet(host, [each.name for each in homes], "parallel = 2")
    process = host.begins("deploy", "--boards", str(path))
    state = host.project / "fleet.state.json"
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        if state.exists() and state.read_text().count('"deployed"') >= 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    kept = state.read_text().count('"deployed"')
    done, document = push(host, path)
    assert done.returncode == 0, done.stderr
    counts = Counter(results(document).values())
    assert counts["same"] == kept >= 3
    assert counts["same"] + counts["deployed"] == len(homes)
    assert len({each.current("tiny") for each in homes}) == 1


def test_what_cannot_be_is_refused_before_any_board_is_changed(host: Host, boards: Boards) -> None:
    homes = boards.add(1)
    path = write_fleet(host, [homes[0].name, "a;b"])
    refused = host.types("deploy", "--boards", str(path))
    assert refused.returncode == 2
    assert "'a;b' is not a board's address" in refused.stderr
    both = host.types("deploy", "--boards", str(path), "--board", "x")
    assert (both.returncode, "exclude each other" in both.stderr) == (2, True)
    (host.project / "fleet.state.json").write_text("{")
    damaged = host.types("deploy", "--boards", str(write_fleet(host, [homes[0].name])))
    assert (damaged.returncode, "is not a fleet's state" in damaged.stderr) == (2, True)
    assert list(homes[0].folder.iterdir()) == []


def test_a_fleet_that_was_signed_takes_nothing_unsigned(
    host: Host, boards: Boards, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "key")
    homes = boards.add(3)
    path = write_fleet(host, [each.name for each in homes])
    done, document = push(host, path, "--sign", str(key))
    assert done.returncode == 0, done.stderr
    digests = {each.current("tiny") for each in homes}
    assert digests == {document["boards"][0]["digest"]}
    assert all((each.folder / ".edgeopt" / "allowed_signers").is_file() for each in homes)
    done, document = push(host, path, "--profile", "float16")
    # The canary is refused, so that no other board is touched.
    assert document["boards"][0]["code"] == 10
    assert {each.current("tiny") for each in homes} == digests
