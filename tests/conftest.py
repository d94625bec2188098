"""Boards that tests share: this machine, a real sshd on loopback, the emulated one."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.board.contract")

#: Where the files are that take minutes.
_SLOW = ("host", "hil", "plugin")

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, so that none is left to one worker at the end."""

    def place(item: pytest.Item) -> int:
        folder = item.path.parent.name
        return _SLOW.index(folder) if folder in _SLOW else len(_SLOW)

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: "pytest.CallInfo[None]"
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything must run (EDGEOPT_REQUIRE_ALL), a test that was skipped has failed."""
    report = yield
    if report.skipped and os.environ.get("EDGEOPT_REQUIRE_ALL"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """There a file that is skipped as a whole has failed as well."""
    report = yield
    if report.skipped and os.environ.get("EDGEOPT_REQUIRE_ALL"):
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be: {report.longrepr}"
    return report


@dataclass(frozen=True)
class Sshd:
    """A real OpenSSH server on 127.0.0.1 with keys of its own."""

    folder: Path
    port: int
    pid: int

    @property
    def identity(self) -> Path:
        return self.folder / "id_ed25519"

    @property
    def host_key(self) -> str:
        """The host key as known_hosts holds it: type and base64."""
        return " ".join((self.folder / "host.pub").read_text().split()[:2])

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def write_config(
        self,
        path: Path,
        *,
        port: int | None = None,
        known: str | None = None,
        alias: str = "board",
        extra: str = "",
    ) -> Path:
        """Write path, an ssh_config in which alias is this server; known replaces its key."""
        listen = port or self.port
        known_hosts = path.with_name(f"{path.name}.{alias}.known")
        line = f"[127.0.0.1]:{listen} {self.host_key}\n"
        known_hosts.write_text(line if known is None else known)
        text = (
            f"Host {alias}\n  HostName 127.0.0.1\n  Port {listen}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {self.identity}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {known_hosts}\n{extra}\n"
        )
        before = path.read_text() if path.exists() else ""
        path.write_text(before + text)
        return path


def _run_sshd(folder: Path, options: str) -> "subprocess.Popen[bytes]":
    for name in ("id_ed25519", "host"):
        if not (folder / name).exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)],
                check=True,
            )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "port").write_text(str(port))
    (folder / "sshd_config").write_text(
        # For each keyword the first value counts.
        f"{options}\n"
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/id_ed25519.pub\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        "LogLevel VERBOSE\n"
        # Of these the last counts, or one is all that may be.
        + ("" if "MaxStartups" in options else "MaxStartups 100\n")
        + ("" if "Subsystem" in options else "Subsystem sftp internal-sftp\n")
    )
    if os.getuid() == 0:
        # sshd run by root insists on this folder.
        Path("/run/sshd").mkdir(exist_ok=True)
    assert SSHD is not None
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def start_server(folder: Path, options: str = "") -> "tuple[Sshd, subprocess.Popen[bytes]]":
    """Start a server whose files are in folder, and wait until it answers; the caller ends it."""
    process = _run_sshd(folder, options)
    port = int((folder / "port").read_text())
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as probe:
                if probe.recv(4) == b"SSH-":
                    return Sshd(folder=folder, port=port, pid=process.pid), process
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise AssertionError((folder / "log").read_text())


@pytest.fixture(scope="session")
def start_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Sshd]]:
    """Return a function that starts a server with more lines of sshd_config."""
    if SSHD is None:
        pytest.skip("no OpenSSH server here; run: sudo apt-get install -y openssh-server")
    running: list[subprocess.Popen[bytes]] = []

    def start(options: str = "") -> Sshd:
        server, process = start_server(tmp_path_factory.mktemp("sshd"), options)
        running.append(process)
        return server

    yield start
    for each in running:
        each.terminate()
        each.wait(10)


@pytest.fixture(scope="session")
def sshd(start_sshd: Callable[..., Sshd]) -> Sshd:
    """A plain OpenSSH server that all tests of a run share."""
    return start_sshd()
