"""Places of labgrid by its real client, coordinator and exporter on loopback."""

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgeopt.board.labgrid import cycle_command, hold_place
from edgeopt.errors import BoardBusy
from tests.host.boards_kit import free_ports

pytestmark = pytest.mark.host

#: Where `make install` puts labgrid: its plugin of pytest is not to be in these tests.
PROGRAMS = Path(sys.prefix) / "labgrid" / "bin"


@dataclass
class Lab:
    """One place with a power port that answers HTTP."""

    asked: list[str] = field(default_factory=list)

    def client(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        argv = ["labgrid-client", "-p", "desk", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def serve_power(lab: Lab, port: int, stack: ExitStack) -> None:
    class Port(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            lab.asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"1")

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Port)
    stack.callback(server.server_close)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.shutdown)


def start(stack: ExitStack, folder: Path, *argv: str) -> None:
    with (folder / f"{argv[0]}.log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=folder, stdout=log, stderr=log)
    stack.callback(process.wait, 20)
    stack.callback(process.terminate)


def await_listener(port: int) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < until, f"nothing listens on port {port}"
            time.sleep(0.1)
        else:
            return


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("PATH", f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    if shutil.which("labgrid-client") is None:
        pytest.skip("no labgrid here; run: make install")
    made, (coordinator, power) = Lab(), free_ports(2)
    address = f"127.0.0.1:{coordinator}"
    monkeypatch.setenv("LG_COORDINATOR", address)
    (tmp_path / "exporter.yaml").write_text(
        "desk:\n  NetworkPowerPort:\n    model: simplerest\n"
        f"    host: 'http://127.0.0.1:{power}/{{index}}/{{value}}'\n    index: '1'\n"
    )
    with ExitStack() as stack:
        serve_power(made, power, stack)
        start(stack, tmp_path, "labgrid-coordinator", "-l", address)
        # An exporter that finds none ends.
        await_listener(coordinator)
        start(stack, tmp_path, "labgrid-exporter", "-c", address, "-n", "lab", "exporter.yaml")
        until = time.monotonic() + 60
        while "NetworkPowerPort" not in made.client("resources").stdout:
            assert time.monotonic() < until, made.client("resources")
            time.sleep(0.2)
        for arguments in (("create",), ("add-match", "*/desk/*")):
            done = made.client(*arguments)
            assert done.returncode == 0, done.stderr
        yield made


def test_a_place_is_acquired_its_power_cycled_and_given_back(lab: Lab) -> None:
    assert subprocess.run(cycle_command("desk"), capture_output=True).returncode != 0
    with hold_place("desk"):
        assert "acquired: None" not in lab.client("show").stdout
        done = subprocess.run(cycle_command("desk"), capture_output=True, text=True)
        assert (done.returncode, lab.asked) == (0, ["/1/0", "/1/1"]), done.stderr
    assert "is not acquired" in lab.client("release").stderr


def test_a_place_that_somebody_else_has_is_busy_and_stays_theirs(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LG_USERNAME", "anna")
    assert lab.client("acquire").returncode == 0
    monkeypatch.setenv("LG_USERNAME", "ben")
    with pytest.raises(BoardBusy, match=r"already acquired by .*anna"), hold_place("desk"):
        pass
    monkeypatch.setenv("LG_USERNAME", "anna")
    assert lab.client("release").returncode == 0
    with pytest.raises(BoardBusy, match="matches nothing"), hold_place("window"):
        pass
