"""Many boards of few real OpenSSH servers: each port has a home folder of its own."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import Sshd

#: sshd opens no more listening sockets (MAX_LISTEN_SOCKS of servconf.h).
_PORTS = 16
_SFTP = "/usr/lib/openssh/sftp-server"

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Home:
    """One board: an alias of the configuration, and the folder that is its home."""

    name: str
    folder: Path
    port: int

    def current(self, app: str) -> str:
        """The digest that the board would run now, or nothing."""
        link = self.folder / ".edgeopt" / "apps" / app / "current"
        return link.readlink().name if link.is_symlink() else ""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in probes:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in probes]


class Boards:
    """Boards on loopback, and the ssh configuration that names them."""

    def __init__(self, start_sshd: Callable[..., Sshd], folder: Path) -> None:
        if not Path(_SFTP).exists():
            pytest.skip("no sftp-server here; run: sudo apt-get install -y openssh-sftp-server")
        self._start = start_sshd
        self.folder = folder
        self.ssh_config = folder / "ssh_config"
        self.homes: list[Home] = []
        self._servers: dict[int, Sshd] = {}

    def add(self, count: int, prefix: str = "board") -> list[Home]:
        """Start as many more boards."""
        first = len(self.homes)
        for begin in range(first, first + count, _PORTS - 1):
            number = min(_PORTS - 1, first + count - begin)
            ports = free_ports(number)
            server = self._start(self._options(ports))
            for offset, port in enumerate(ports):
                home = Home(f"{prefix}{begin + offset}", self.folder / str(port), port)
                home.folder.mkdir()
                self.homes.append(home)
                self._servers[port] = server
                self.name(home.name, port, server)
        return self.homes[first:]

    def name(self, alias: str, port: int, server: Sshd | None = None) -> None:
        """Let an alias mean a port, also one where no server listens (then no key is known)."""
        lines = (
            f"Host {alias}\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n"
            f"  IdentitiesOnly yes\n"
        )
        server = server or self._servers[self.homes[0].port]
        known = self.folder / f"{alias}.known"
        known.write_text(f"[127.0.0.1]:{port} {server.host_key}\n")
        lines += f"  IdentityFile {server.identity}\n  UserKnownHostsFile {known}\n"
        with self.ssh_config.open("a") as file:
            file.write(lines)

    def _options(self, ports: Sequence[int]) -> str:
        script = self.folder / f"login{ports[0]}"
        # $4 is the port that the client came to.
        script.write_text(
            "set -- $SSH_CONNECTION\n"
            f"HOME={self.folder}/$4; export HOME; cd $HOME || exit 1\n"
            "case $SSH_ORIGINAL_COMMAND in\n"
            f"internal-sftp) exec {_SFTP} ;;\n"
            '*) exec sh -c "$SSH_ORIGINAL_COMMAND" ;;\n'
            "esac\n"
        )
        listen = "".join(f"ListenAddress 127.0.0.1:{each}\n" for each in ports)
        return f"{listen}ForceCommand exec sh {script}"


@pytest.fixture
def boards(start_sshd: Callable[..., Sshd], tmp_path: Path) -> Boards:
    folder = tmp_path / "boards"
    folder.mkdir()
    return Boards(start_sshd, folder)


@dataclass
class Host:
    """Somebody on some machine who types commands in a project; names as a host of their own."""

    project: Path
    ssh_config: Path
    name: str = ""
    begun: "list[subprocess.Popen[str]]" = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        from edgeopt.cli.places import cache_folder

        return os.environ | {"EDGEOPT_CACHE_DIR": str(cache_folder()), "OMP_NUM_THREADS": "1"}

    def argv(self, *arguments: str) -> list[str]:
        options = ["--ssh-config", str(self.ssh_config)]
        if not self.name:
            return [sys.executable, "-m", "edgeopt", *arguments, *options]
        # Two hosts of a test are one machine: only the name tells them apart.
        script = (
            f"import socket, sys; socket.gethostname = lambda: {self.name!r}\n"
            "from edgeopt.cli import main\nsys.argv[0] = 'edgeopt'; main()"
        )
        return [sys.executable, "-c", script, *arguments, *options]

    def types(self, *arguments: str) -> Done:
        return subprocess.run(
            self.argv(*arguments),
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3000,
        )

    def begins(self, *arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            self.argv(*arguments),
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.begun.append(process)
        return process

    def leaves(self) -> None:
        """End what a test that failed has left running."""
        for each in self.begun:
            each.kill()
            each.communicate()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Mount small file systems in memory over folders."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting needs root; run: sudo pytest")
    points: list[Path] = []

    def make(point: Path, options: str) -> None:
        argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)]
        if subprocess.run(argv, capture_output=True, check=False).returncode != 0:
            pytest.skip("this container may not mount; run on a machine that may")
        points.append(point)

    yield make
    for point in points:
        # A test may have done so already.
        subprocess.run(["umount", "-l", str(point)], capture_output=True, check=False)
