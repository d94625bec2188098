"""Kill deploys at random moments, for as long as asked: the board must never have a half.

python -m tests.soak --kills 500 --seed 0

Three signed releases of a tiny model, compiled once, take turns on this machine behind a real
OpenSSH server. Each deploy runs in a process of its own until its fault: SIGKILL, a connection
that is reset, swallowed or garbled, up to four times in a row. After each the board must have
the old release or the new one, whole; the same deploy undisturbed must then end well and leave
nothing but two releases.
"""

import argparse
import collections
import contextlib
import faulthandler
import hashlib
import importlib
import json
import os
import random
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from edgeopt.board import Completed
from edgeopt.board.connect import Patience
from edgeopt.board.destination import read_route
from edgeopt.board.ssh import SshBoard
from edgeopt.cli.places import cache_folder
from edgeopt.cli.request import Request, make_order
from edgeopt.deploy.chunks import SMALLEST_FILE
from edgeopt.deploy.place import known_digest
from edgeopt.deploy.signature import Signer
from edgeopt.errors import EdgeoptError
from edgeopt.job import Run
from edgeopt.pipeline import deploy
from edgeopt.profile import Bench
from edgeopt.store import Store
from edgeopt.testing import FaultProxy
from tests.board.wrapped import Wrapped
from tests.conftest import Sshd, start_server
from tests.tiny import write_tiny

#: Plans of the same model: each is a release of its own, and the third in turn was removed.
PLANS = ("float32", "float16", "int8")
APP = "tiny"
#: Seconds until a cut-off board has noticed, and for a deploy that lost its board.
QUIET, ENDING = 15.0, 120.0
#: The exit code of a board that somebody has, and seconds until a dead one has let go of it.
BUSY, TURN = 8, 40.0
#: Seconds between two calls to the board, compiling included.
LONGEST = 300.0
#: A garbled length makes the server wait for more: the deploy has to lose patience.
HASTY = Patience(connect=20.0, silence=4.0)
#: What is soaked is the release, not its speed.
BENCH = Bench(warmup=0, iterations=3, launches=1, samples=3, threads=1)
#: What a deploy passes through, as the board shows it when the fault comes.
PHASES = ("reached", "leased", "uploading", "staged", "running", "switched")
#: Faults in which each phase must have had its kill; until then one of them is aimed at.
ENOUGH = 60

Fault = Literal["kill", "reset", "blackhole", "flip"]
_FAULTS: dict[Fault, int] = {"kill": 12, "reset": 2, "blackhole": 1, "flip": 1}


class SoakFailed(AssertionError):
    """What must never be, with the seed and the number of the fault in its text."""


@dataclass
class Told(Wrapped):
    """A board that writes a byte to a pipe before each call, so that moments can be chosen."""

    pipe: int

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        os.write(self.pipe, b".")
        return self.inner.run(argv, stdin=stdin, timeout=timeout)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        os.write(self.pipe, b".")
        self.inner.put(local, remote, offset=offset, timeout=timeout)

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        os.write(self.pipe, b".")
        self.inner.get(remote, local, limit=limit, timeout=timeout)


@dataclass
class Figures:
    """What a soak has seen."""

    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    phases: collections.Counter[str] = field(default_factory=collections.Counter)
    killed: collections.Counter[str] = field(default_factory=collections.Counter)
    #: Kills of the process that deploys, and deploys that ended before their fault.
    kills: int = 0
    early: int = 0
    #: Reruns that found the lease's turn still taken, and asked again.
    waited: int = 0
    reruns: int = 0
    converged: int = 0
    #: What was current after the fault.
    old: int = 0
    new: int = 0
    #: Longest time in seconds until no process of the board was left.
    slowest_end: float = 0.0

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        phases = ", ".join(f"{each} {self.phases[each]}" for each in PHASES)
        killed = ", ".join(f"{each} {self.killed[each]}" for each in PHASES)
        return (
            f"{self.faults.total()} faults ({faults}), {self.early} of them too late; "
            f"{self.kills} kills, {self.reruns} reruns, {self.converged} converged; "
            f"{self.waited} asked again for the lease; "
            f"old release {self.old}, new {self.new}, half 0; phases: {phases}; "
            f"killed when: {killed}; "
            f"the board was quiet after {self.slowest_end:.1f} s at most"
        )

    def missed(self) -> list[str]:
        """Return the phases in which no deploy was killed yet."""
        return [each for each in PHASES if not self.killed[each]]


@dataclass
class Soak:
    """One board behind sshd, a project whose plans are compiled, and a seeded source of faults."""

    home: Path
    project: Path
    server: Sshd
    seed: int

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.figures = Figures()
        self.root = self.home / ".edgeopt"
        self.current, self.previous = 0, -1
        self.digests: dict[int, str] = {}
        #: Calls of a whole deploy, as the latest undisturbed one needed.
        self.calls = 0

    def warm(self) -> None:
        """Compile every plan and deploy each once."""
        for number in range(len(PLANS)):
            self.finish(number)
            self.digests[number] = self.link("current")
            self.previous, self.current = self.current if number else -1, number
        # What every deploy imports, once: a fork has it.
        for name in ("edgeopt.compile", "edgeopt.compress", "edgeopt.trial", "edgeopt.board.ssh"):
            importlib.import_module(name)
        if len(set(self.digests.values())) != len(PLANS):
            raise SoakFailed("two plans make the same release")

    def strike(self) -> None:
        """Deploy the next release, disturbed up to four times in a row, then undisturbed."""
        following = (self.current + 1) % len(PLANS)
        for number in range(self.random.choice((1, 2, 3, 4))):
            # A deploy that was disturbed before does not pass all phases again.
            missed = self.figures.missed() if number == 0 else []
            self._disturb_once(following, aim=missed[0] if missed else "")
        self.finish(following)
        self.figures.reruns += 1
        self.check_converged(following)
        self.figures.converged += 1
        self.previous, self.current = self.current, following

    def _disturb_once(self, following: int, *, aim: str) -> None:
        fault = self.random.choices(list(_FAULTS), list(_FAULTS.values()))[0]
        fault = "kill" if aim else fault
        proxy = FaultProxy(self.server.port)
        config = self.server.write_config(self._fresh("config"), port=proxy.port)
        # Before the proxy has threads: what they hold would be held for ever in a fork.
        pid, pipe = self._start(following, config)
        with proxy:
            self._disturb(following, fault, proxy, pid=pid, pipe=pipe, aim=aim)
        self.figures.slowest_end = max(self.figures.slowest_end, self._await_quiet())
        allowed = {self.digests[self.current]: "old", self.digests[following]: "new"}
        found = self.link("current")
        if found not in allowed:
            raise self.failed(f"{found or 'nothing'} is current after {fault}")
        check_whole(self.root, found)
        setattr(self.figures, allowed[found], getattr(self.figures, allowed[found]) + 1)

    def _disturb(
        self, following: int, fault: Fault, proxy: FaultProxy, *, pid: int, pipe: int, aim: str
    ) -> None:
        last = self.random.uniform(0, self.calls * 1.02)
        if aim:
            ended = self._ends_before(pid, following, aim)
        else:
            ended = _read_until(pipe, round(last)) or _ends_within(pid, self.random.expovariate(50))
        phase = self.phase(following)
        self.figures.faults[fault] += 1
        self.figures.phases[phase] += 1
        if ended:
            self.figures.early += 1
        elif fault == "kill":
            os.killpg(pid, signal.SIGKILL)
            self.figures.kills += 1
            self.figures.killed[phase] += 1
        elif fault == "reset":
            proxy.cut()
        else:
            proxy.at_byte, proxy.fault = 0, fault
            if fault == "blackhole":
                # Whoever is at the keyboard has less patience than the connection.
                os.killpg(pid, signal.SIGKILL)
                self.figures.kills += 1
                self.figures.killed[phase] += 1
        status = self._await_end(pid, ENDING)
        os.close(pipe)
        if status not in (0, 6, BUSY, 10, -signal.SIGKILL):
            raise self.failed(f"status {status} after {fault}: {self._said()}")

    def finish(self, number: int) -> None:
        """Deploy undisturbed, which must end well.

        Who was killed may be ending what an earlier holder left running, and has the lease yet.
        """
        until = time.monotonic() + TURN
        while (status := self._try(number)) == BUSY and time.monotonic() < until:
            self.figures.waited += 1
            time.sleep(5)
        if status != 0:
            raise self.failed(f"a deploy without a fault ends with {status}: {self._said()}")

    def _try(self, number: int) -> int:
        pid, pipe = self._start(number, self.server.write_config(self._fresh("config")))
        calls = 0
        while _read(pipe):
            calls += 1
        status = self._await_end(pid, 5.0)
        os.close(pipe)
        if status == 0:
            self.calls = max(self.calls, calls)
        return status

    def _start(self, number: int, config: Path) -> tuple[int, int]:
        while threading.active_count() > 1:
            time.sleep(0.001)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os._exit(self._deploy(number, config, writer))
        # As the child does, whoever is first: it must be a group before it is killed as one.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        os.close(writer)
        return pid, reader

    def _deploy(self, number: int, config: Path, pipe: int) -> int:
        """Deploy in this process, which is a group of its own, and return its exit code."""
        os.setpgid(0, 0)
        with self._log.open("w") as log:
            os.dup2(log.fileno(), 2)
            faulthandler.register(signal.SIGUSR1)
            try:
                request = Request(
                    target="x86-64",
                    project=self.project,
                    profile=PLANS[number],
                    board="board",
                    ssh_config=config,
                )
                order = make_order(request)
                profile = order.job.profile.model_copy(update={"bench": BENCH})
                job = replace(order.job, profile=profile, signer=Signer(self.server.identity))
                run = Run(job, Store(cache_folder()), lambda _record: None)
                route = read_route("board", ssh_config=config)
                board = SshBoard(route, name="board", patience=HASTY)
                deploy(run, lambda: Told(board, pipe), reference=False)
            except EdgeoptError as error:
                log.write(str(error))
                return error.exit_code
            except BaseException:
                traceback.print_exc(file=log)
                return 1
        return 0

    def _await_end(self, pid: int, seconds: float) -> int:
        """Return a child's exit status, negative for a signal; one that does not end is killed."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if _has_ended(pid):
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            time.sleep(0.005)
        os.kill(pid, signal.SIGUSR1)
        time.sleep(0.5)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise self.failed(f"a deploy did not end within {seconds:.0f} s: {self._said()}")

    @property
    def _log(self) -> Path:
        return self.project / "said"

    def _said(self) -> str:
        return self._log.read_text()

    def _fresh(self, name: str) -> Path:
        path = self.project / name
        path.unlink(missing_ok=True)
        return path

    def phase(self, following: int) -> str:
        """Say how far the deploy has come, from what lies on the board."""
        releases = self.root / "apps" / APP / "releases"
        if self.link("current") == self.digests[following]:
            return "switched"
        if any(self.root.glob("runs/*")):
            return "running"
        if (releases / self.digests[following]).exists():
            return "staged"
        if (self.root / "apps" / APP / "state").exists():
            return "uploading"
        return "leased" if (self.root / "lease").exists() else "reached"

    def _ends_before(self, pid: int, following: int, phase: str) -> bool:
        """Wait until a deploy is in a phase; True when it ended before it was seen there."""
        while self.phase(following) != phase:
            if _ends_within(pid, 0.001):
                return True
        return False

    def check_phases(self) -> None:
        """A soak that met not every phase has shown nothing of those that it did not meet."""
        if missed := self.figures.missed():
            raise self.failed(f"no deploy was killed when it was {', '.join(missed)}")

    def _await_quiet(self) -> float:
        """Wait until no process works on the board; one that stays is an orphan."""
        begun = time.monotonic()
        while left := processes_of(self.home):
            if time.monotonic() - begun > QUIET:
                raise self.failed(f"these still run on the board: {left}")
            time.sleep(0.01)
        return time.monotonic() - begun

    def check_converged(self, number: int) -> None:
        """Compare all that is on the board with what two whole releases consist of."""
        new, old = self.digests[number], self.digests[self.current]
        if (self.link("current"), self.link("previous")) != (new, old):
            raise self.failed(f"current is {self.link('current')}, not {new}")
        wanted = {
            "history.jsonl",
            "serial",
            "current",
            "previous",
            f"releases/{new}",
            f"releases/{old}",
        }
        wanted = {f".edgeopt/apps/{APP}/{name}" for name in wanted}
        for digest in (new, old):
            check_whole(self.root, digest)
            release = self.root / "apps" / APP / "releases" / digest
            wanted |= {
                str(path.relative_to(self.home))
                for path in release.iterdir()
                if path.name != "unproven"
            }
            sums = (release / "sha256sums").read_text().splitlines()
            objects = {self.root / "objects" / line.split()[0] for line in sums}
            objects |= {
                path.with_name(f"{path.name}.chunks")
                for path in objects
                if path.stat().st_size >= SMALLEST_FILE
            }
            wanted |= {str(path.relative_to(self.home)) for path in objects}
        wanted |= {
            ".edgeopt/allowed_signers",
            # The number of the latest lease, which only grows.
            ".edgeopt/fence",
            ".edgeopt",
            ".edgeopt/apps",
            f".edgeopt/apps/{APP}",
            "tmp",
        }
        wanted |= {".edgeopt/objects", ".edgeopt/runs", f".edgeopt/apps/{APP}/releases"}
        found = {str(path.relative_to(self.home)) for path in self.home.rglob("*")}
        if found != wanted:
            raise self.failed(f"left: {sorted(found - wanted)}; lost: {sorted(wanted - found)}")
        # What watches a connection sees its end a moment after whoever has closed it.
        self._await_quiet()

    def link(self, name: str) -> str:
        """Return the digest that a link on the board points to, or nothing."""
        link = self.root / "apps" / APP / name
        return known_digest(link.readlink().name) if link.is_symlink() else ""

    def failed(self, what: str) -> SoakFailed:
        return SoakFailed(f"seed {self.seed}, fault {self.figures.faults.total()}: {what}")


def check_whole(root: Path, digest: str) -> None:
    """Every file of the release has the digest that its name promises."""
    release = root / "apps" / APP / "releases" / digest
    manifest = (release / "manifest.json").read_bytes()
    files = {each["name"]: each["sha256"] for each in json.loads(manifest)["files"]}
    for name, sha256 in (files | {"manifest.json": digest}).items():
        if hashlib.sha256((release / name).read_bytes()).hexdigest() != sha256:
            raise SoakFailed(f"{name} of {digest} is not whole")


def processes_of(home: Path) -> list[str]:
    """Return the command lines of processes that work in the board's home or name it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            inside = (entry / "cwd").readlink().is_relative_to(home)
            # A zombie has no command line left.
            if command and (inside or os.fsencode(home) in command):
                found.append(f"{entry.name} {command[:300]!r}")
    return found


def _read(pipe: int) -> bool:
    """Wait for one call; False when the deploy has ended, or says nothing for too long."""
    return bool(select.select([pipe], [], [], LONGEST)[0]) and bool(os.read(pipe, 1))


def _read_until(pipe: int, count: int) -> bool:
    """Wait for that many calls; True when the deploy ended before."""
    return not all(_read(pipe) for _ in range(count))


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _ends_within(pid: int, seconds: float) -> bool:
    time.sleep(seconds)
    return _has_ended(pid)


#: What is printed when the soak has seen all that it looks for.
PROVED = "a half release, a leftover and an orphan are seen"


def prove(soak: Soak) -> None:
    """Damage the board in each way that must never be, and see that it is noticed."""
    number = soak.current
    soak.current = soak.previous
    weights = soak.root / "apps" / APP / "current" / "weights.bin"
    content, mode = weights.read_bytes(), weights.stat().st_mode
    soak.check_converged(number)
    weights.chmod(0o600)
    weights.write_bytes(content[:-1])
    _sees(soak, number, "weights.bin of ")
    weights.write_bytes(content)
    weights.chmod(mode)
    (soak.root / "lease").touch()
    _sees(soak, number, "left: ['.edgeopt/lease']")
    (soak.root / "lease").unlink()
    child = os.fork()
    if child == 0:
        os.chdir(soak.home)
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.2)
        _sees(soak, number, "these still run on the board")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    soak.current = number


def _sees(soak: Soak, number: int, what: str) -> None:
    seen = "nothing"
    try:
        soak.check_converged(number)
    except SoakFailed as error:
        seen = str(error)
    if what not in seen:
        raise AssertionError(f"{what!r} is not seen: {seen}")


@contextlib.contextmanager
def open_soak(folder: Path, seed: int) -> Iterator[Soak]:
    """Make the board and its server below folder, and a project whose plans are compiled."""
    home = folder / "home"
    (home / "tmp").mkdir(parents=True)
    (folder / "sshd").mkdir()
    server, process = start_server(
        folder / "sshd",
        # The board's home is a folder of the soak's, before a login shell reads the user's files.
        f"SetEnv HOME={home} TMPDIR={home}/tmp\n"
        f'ForceCommand cd {home}; exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
        "Subsystem sftp /usr/lib/openssh/sftp-server",
    )
    try:
        soak = Soak(home, write_tiny(folder / "project"), server, seed)
        soak.warm()
        yield soak
    finally:
        process.terminate()
        process.wait(10)


def main() -> None:
    """Run as many faults as asked, or for as long, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prove", action="store_true", help="show that damage would be seen")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="edgeopt-soak-") as folder,
        open_soak(Path(folder), asked.seed) as soak,
    ):
        until = time.monotonic() + asked.seconds
        while (soak.figures.kills < asked.kills and time.monotonic() < until) or (
            soak.figures.missed() and soak.figures.faults.total() < ENOUGH
        ):
            soak.strike()
            if soak.figures.reruns % 10 == 0:
                print(soak.figures, file=sys.stderr, flush=True)
        soak.check_phases()
        if asked.prove:
            prove(soak)
            print(PROVED)
    print(f"seed {asked.seed}: {soak.figures}")


if __name__ == "__main__":
    main()
