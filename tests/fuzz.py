"""Damaged files and messages for everything that reads what it did not write.

python -m tests.fuzz --seed 0

Each subject has recorded inputs and a parser. A case is one input with a few mutations: it must be
read, or refused with an EdgeoptError, within seconds. Each subject runs in a process of its own,
so that a crash is one too; models go through edgeopt's own isolated process.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgeopt.artifact import Plan
from edgeopt.board import Completed, Kind
from edgeopt.board.destination import read_route
from edgeopt.board.facts import read_facts
from edgeopt.board.known_hosts import parse_known_keys
from edgeopt.board.lease import hold
from edgeopt.board.sftp import Sftp
from edgeopt.catalog import decode
from edgeopt.cli.request import _reported_app
from edgeopt.deploy import read_history, read_status
from edgeopt.deploy.chunks import parse_list
from edgeopt.deploy.preflight import parse_survey
from edgeopt.errors import EdgeoptError, ModelError
from edgeopt.hil.baseline import Baselines
from edgeopt.hil.quarantine import read_quarantine
from edgeopt.model import load_model, normalize_model
from edgeopt.model.describe import describe_file
from edgeopt.model.isolate import Limits
from edgeopt.model.simplify import normalize_file
from edgeopt.model.worker import limit
from edgeopt.profile import load_profile
from edgeopt.program import parse_report
from edgeopt.project import Project
from edgeopt.runner.elf import needed_glibc, undefined_symbols
from edgeopt.store import Store
from edgeopt.target import load_target
from edgeopt.tiles import read_tiles
from tests.board.test_facts import SECTIONS
from tests.board.test_sftp import FSYNC, Server
from tests.deploy.test_preflight import RECORDED
from tests.graphs import image_model, text_model
from tests.plugin.test_parts import make_baseline
from tests.samples import report
from tests.tiny import PROJECT

ROOT = Path(__file__).parents[1]
#: Seconds for one case; reading a model starts a process.
PATIENCE, MODEL_PATIENCE = 5.0, 60.0
#: What a parser may not expect to find.
TOKENS = (
    *(b"", b"NaN", b"-1", b"1e999", b"9" * 400, b"null", b"[" * 3000, b'{"a":' * 500, b"\0"),
    *(b"\xff\xfe", b"\x1b[2J", b"../../etc/passwd", b"true", b'"', b"'''", b"\n\n", b"="),
    *(b"\r", b"0x", b"inf", b" "),
)


@dataclass(frozen=True)
class Subject:
    """One parser, what it was meant to read, and how often it is fed."""

    seeds: Callable[[Path], Sequence[bytes]]
    parse: Callable[[bytes, Path], object]
    cases: int
    patience: float = PATIENCE


@dataclass
class Tally:
    """What became of a subject's cases; crashes and hangs say with which number."""

    taken: int = 0
    refused: int = 0
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return self.taken + self.refused + len(self.crashes) + len(self.hangs)


class _Hang(BaseException):
    """The patience for a case is over."""


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change one to four things: bits, a cut, a range removed, doubled, or made a token."""
    changed = bytearray(data)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(changed) + 1)
        end = min(len(changed), place + int(source.expovariate(0.05)))
        match source.randrange(6):
            case 0 if changed:
                changed[min(place, len(changed) - 1)] ^= 1 << source.randrange(8)
            case 1 if source.random() < 0.3:
                del changed[place:]
            case 2:
                del changed[place:end]
            case 3:
                changed[place:place] = changed[place:end]
            case 4:
                changed[place:end] = source.choice(TOKENS)
            case _:
                changed[place:end] = source.randbytes(end - place)
    return bytes(changed)


class Says:
    """A board that answers everything with the same bytes."""

    def __init__(self, text: bytes, status: int) -> None:
        self.text, self.status = text, status

    @property
    def name(self) -> str:
        return "a liar"

    @property
    def kind(self) -> Kind:
        return "board"

    def close(self) -> None:
        pass

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        return Completed(tuple(argv), self.status, self.text, self.text)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        pass

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        local.write_bytes(self.text[:limit])


def _files(pattern: str) -> Callable[[Path], list[bytes]]:
    return lambda _folder: [path.read_bytes() for path in sorted(ROOT.glob(pattern))]


def _texts(*texts: str | bytes) -> Callable[[Path], list[bytes]]:
    return lambda _folder: [each.encode() if isinstance(each, str) else each for each in texts]


def _written(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _own_name(data: bytes, folder: Path) -> Path:
    """Write a target or a profile, which are called what their files are."""
    match = re.search(rb'^name *= *"([a-z0-9-]+)"', data, re.MULTILINE)
    return _written(data, folder, f"{match[1].decode() if match else 'rpi4'}.toml")


def _lines(data: bytes) -> list[str]:
    return data.decode(errors="replace").splitlines()


def _project(data: bytes, folder: Path) -> object:
    return decode(_written(data, folder, "edgeopt.toml"), Project)


def _record(data: bytes, folder: Path) -> object:
    """A stage's record that is damaged is made again, never an error."""
    store, made = Store(folder / "store"), Plan(name="float16", choices=())
    store.stage("fit", {"a": 1}, Plan, lambda _folder: made, fresh=False)
    for path in (folder / "store").rglob("record.json"):
        path.write_bytes(data)
    found = store.stage("fit", {"a": 1}, Plan, lambda _folder: made, fresh=False).value
    assert isinstance(found, Plan)
    return found


def _tiles(data: bytes, folder: Path) -> object:
    return read_tiles(_written(data, folder, "tiles.json"), "aarch64-cortex-a72")


def _baseline(data: bytes, folder: Path) -> object:
    (folder / "rpi4").mkdir(exist_ok=True)
    _written(data, folder / "rpi4", "model.json")
    return Baselines(folder).read("rpi4", "model")


def _last_report(data: bytes, folder: Path) -> object:
    (folder / ".edgeopt" / "reports").mkdir(parents=True, exist_ok=True)
    _written(data, folder / ".edgeopt" / "reports", "rpi4.json")
    return _reported_app(folder, "rpi4")


def _status(data: bytes, _folder: Path) -> object:
    root = PurePosixPath("/x")
    board = Says(data, 0)
    return read_status(board, "app", root=root, check=True), read_history(board, "app", root=root)


def _lease(data: bytes, _folder: Path) -> None:
    with hold(Says(data, 75), PurePosixPath("/x"), owner="fuzz", seconds=9):
        pass


class Reads(Server):
    """A server that also gives out a file of zeros."""

    def _serve(self, kind: int, body: bytes) -> None:
        number = body[:4]
        if kind == 7:
            self._answer(105, number + struct.pack(">IQI", 5, 70_000, 0o100600))
        elif kind == 5:
            begin, size = struct.unpack_from(">QI", body, 9)
            size = min(size, 70_000 - begin)
            data = struct.pack(">I", size) + bytes(max(size, 0))
            self._answer(103 if size else 101, number + (data if size else b"\0\0\0\x01"))
        else:
            super()._serve(kind, body)


def _sftp(data: bytes, folder: Path) -> object:
    """Let a server's answers be damaged on their way."""
    server = Reads(extensions=FSYNC)
    whole, position = server.recv, 0

    def receive(size: int) -> bytes:
        nonlocal position
        real = whole(size)
        noise, position = data[position : position + len(real)], position + len(real)
        return bytes(a ^ b for a, b in zip(real, noise.ljust(len(real), b"\0"), strict=True))

    server.recv = receive  # type: ignore[method-assign]
    sftp = Sftp(server, deadline=time.monotonic() + 2, board="fake")
    source = _written(bytes(70_000), folder, "sent")
    sftp.write(source, "there", offset=0, progress=None)
    sftp.read("there", folder / "back", limit=1 << 20)
    return None


def _sftp_seeds(_folder: Path) -> list[bytes]:
    """Mostly zeros, which damage nothing: a case flips few of the bytes."""
    return [bytes(size) for size in (400, 2000, 8000)]


def _route(data: bytes, folder: Path) -> object:
    (folder / "home").mkdir(exist_ok=True)
    return read_route("board", ssh_config=_written(data, folder, "config"))


def _elf(data: bytes, folder: Path) -> object:
    path = _written(data, folder, "program")
    return needed_glibc(path), undefined_symbols(path)


def _elf_seeds(_folder: Path) -> list[bytes]:
    """The start and the tables of a program, which are all that is read."""
    return [Path("/bin/true").read_bytes(), Path("/bin/sleep").read_bytes()]


def _model(data: bytes, folder: Path) -> object:
    """Take a model in as the isolated process does, with its limits, in a fork that has onnx."""
    path = _written(data, folder, "model.onnx")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            limit(dataclasses.asdict(Limits(cpu=20)))
            describe_file(str(path))
            normalize_file(str(path), str(path), str(folder / "out.onnx"), {}, {})
            code = 0
        finally:
            # What run_isolated makes a ModelError of, whatever it was.
            os._exit(code)
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except _Hang:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    if code != 0:
        raise ModelError("the model cannot be read", why=f"status {code}")
    return None


def _whole_model(data: bytes, folder: Path) -> object:
    _written(data, folder, "model.onnx")
    loaded = load_model("model.onnx", directory=folder / "in", search=folder)
    return normalize_model(loaded, shapes={}, directory=folder / "out")


def _model_seeds(folder: Path) -> list[bytes]:
    return [make(folder).path.read_bytes() for make in (text_model, image_model)]


_REPORT = """{"schema_version": 1, "program": "edgeopt-run", "version": "0.1.0",
 "clock": "CLOCK_MONOTONIC_RAW", "threads": 1, "load_ns": 5000, "first_ns": 2000,
 "samples_ns": [1001, 1002, 1003, 1004, 1005], "realtime_drift_ns": 0,
 "memory": {"start": 1000000, "loaded": 2000000, "peak": 3000000, "anonymous": 1000000,
            "file_backed": 2000000, "minor_faults": 10, "major_faults": 0},
 "before": {"temperature_c": 40.5, "frequency_khz": [1500000], "throttled": "0x0"},
 "after": {"temperature_c": null, "frequency_khz": [600000], "throttled": "0x0"},
 "outputs": [{"path": "out/0.npy", "dtype": "float32", "shape": [3, 4]}]}"""
_FACTS = "\n".join(f"@@edgeopt {name}\n{text}" for name, text in SECTIONS.items())
_STATUS = f"""root /home/pi/.edgeopt
current releases/{"a" * 64}
previous releases/{"b" * 64}
complete yes
state switch {"a" * 64} {"b" * 64}
release {"a" * 64}
files good
{{"action":"deploy","digest":"","id":"00000000","time":"2026-01-01T00:00:00Z","version":"1"}}
"""
_LEASE = (
    '120 00ff 3 60 {"owner": "edgeopt deploy x", "host": "lab", "user": "pi", "pid": 1,'
    ' "started": 7}\n'
)
_TILES = """{"schema_version": 1, "cpu": "aarch64-cortex-a72", "tiles": [{"kind": "matmul",
 "rows": 32, "columns": 384, "depth": 384, "dtype": "float32", "tile": [8, 12],
 "gain": 0.07, "measured": "time", "date": "2026-01-31", "edgeopt": "0.1.0"}]}"""
_KNOWN = """x.lab,192.0.2.7 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGludmFsaWQ=
[127.0.0.1]:2222 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGludmFsaWQ=
|1|c2FsdHNhbHRzYWx0c2FsdHM=|ZGlnZXN0ZGlnZXN0ZGlnZXM= ssh-rsa AAAA
@revoked *.lab,!good.lab ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGludmFsaWQ=
"""
_CONFIG = """Host board
  HostName 192.0.2.7
  Port 2222
  User pi
  IdentityFile ~/.ssh/id_ed25519
  ProxyJump gate
Host gate
  HostKeyAlias the-gate
Match host *.lab
  User lab
"""
_PROJECTS = (
    PROJECT,
    PROJECT + '\n[boards]\nrpi4 = "pi@raspberrypi.local"\n[signing]\nkey = "~/.ssh/id"\n',
    'app = "q"\nmodel = "q:build"\nshapes = { ids = "1x32" }\nvalues = { sr = 16000 }\n[task]\n'
    'kind = "text-classification"\ntokenizer = "t.json"\nlength = 32\nlabels = ["A", "B"]\n'
    'train = "a.jsonl"\ntest = "b.jsonl"\n',
)
_QUARANTINE = '[[quarantine]]\ntest = "t.py::test_a"\nreason = "r"\nexpires = 2030-01-01\n'
_CHUNKS = "0123456789abcdef 16384\nfedcba9876543210 4096\n" * 3
_COUNTS = {"warmup": 1, "iterations": 5, "threads": 1, "samples": 3}

SUBJECTS: dict[str, Subject] = {
    "target": Subject(
        _files("targets/*.toml"), lambda d, f: load_target(_own_name(d, f)), 900
    ),
    "profile": Subject(
        _files("profiles/*.toml"), lambda d, f: load_profile(_own_name(d, f)), 700
    ),
    "project": Subject(_texts(*_PROJECTS), _project, 700),
    "quarantine": Subject(
        _texts(_QUARANTINE), lambda d, f: read_quarantine(_written(d, f, "q.toml")), 200
    ),
    "plan": Subject(
        _texts(
            '{"files":{},"result":{"name":"mixed","choices":[{"weight":"w","method":"int4-blocks",'
            '"block":32,"reconstruct":true}],"ranges":[{"tensor":"t","low":-1.5,"high":2.0}]}}'
        ),
        _record,
        200,
    ),
    "tiles": Subject(_texts(_TILES), _tiles, 300),
    "baseline": Subject(_texts(make_baseline(9).model_dump_json()), _baseline, 400),
    "last report": Subject(_texts(report().model_dump_json()), _last_report, 400),
    "program's report": Subject(
        _texts(_REPORT), lambda d, _f: parse_report(d, _COUNTS), 900
    ),
    "facts": Subject(_texts(_FACTS), lambda d, _f: read_facts(Says(d, 0)), 700),
    "survey": Subject(_texts(RECORDED), lambda d, _f: parse_survey(_lines(d), "a"), 700),
    "status": Subject(_texts(_STATUS), _status, 400),
    "lease": Subject(_texts(_LEASE), _lease, 300),
    "chunks": Subject(_texts(_CHUNKS), lambda d, _f: parse_list(_lines(d)), 200),
    "sftp": Subject(_sftp_seeds, _sftp, 600),
    "known hosts": Subject(
        _texts(_KNOWN),
        lambda d, _f: parse_known_keys(d.decode(errors="replace"), "x.lab", place="p"),
        300,
    ),
    "ssh config": Subject(_texts(_CONFIG), _route, 300),
    "elf": Subject(_elf_seeds, _elf, 400),
    "onnx": Subject(_model_seeds, _model, 1000, MODEL_PATIENCE),
    "onnx, from outside": Subject(_model_seeds, _whole_model, 20, MODEL_PATIENCE),
}  # fmt: skip


def run_subject(name: str, subject: Subject, *, cases: int, seed: int) -> Tally:
    """Feed one parser in a process of its own; what kills that is a crash."""
    with tempfile.TemporaryDirectory(prefix="edgeopt-fuzz-") as made:
        folder = Path(made)
        tally = folder / "tally.json"
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                (folder / "work").mkdir()
                found = _feed(name, subject, folder / "work", cases=cases, seed=seed)
                tally.write_text(json.dumps(dataclasses.asdict(found)))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != 0:
            return Tally(crashes=[f"{name}: its process ended with {code}"])
        return Tally(**json.loads(tally.read_text()))


def _feed(name: str, subject: Subject, folder: Path, *, cases: int, seed: int) -> Tally:
    seeds = subject.seeds(folder)
    tally = Tally()
    for number in range(cases):
        source = random.Random(f"{name} {seed} {number}")
        data = mutate(source.choice(seeds), source)
        try:
            with _patience(subject.patience):
                subject.parse(data, folder)
            tally.taken += 1
        except EdgeoptError:
            tally.refused += 1
        except _Hang:
            tally.hangs.append(f"{name} {number}")
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            tally.crashes.append(
                f"{name} {number}: {type(error).__name__} at {place}: {error}"[:300]
            )
    return tally


@contextlib.contextmanager
def _patience(seconds: float) -> Iterator[None]:
    def give_up(_number: int, _frame: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """Feed every subject, print a table, and end with 1 when anything crashed or hung."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--subject", action="append", choices=list(SUBJECTS))
    asked = parser.parse_args()
    total: collections.Counter[str] = collections.Counter()
    for name in asked.subject or SUBJECTS:
        subject = SUBJECTS[name]
        tally = run_subject(name, subject, cases=subject.cases, seed=asked.seed)
        crashed, hung = len(tally.crashes), len(tally.hangs)
        print(
            f"{name:<18}{tally.cases:>6} cases {tally.refused:>6} refused {tally.taken:>6} read"
            f"{crashed:>4} crashes {hung:>3} hangs",
            flush=True,
        )
        for each in (*tally.crashes, *tally.hangs):
            print(f"  {each}", file=sys.stderr)
        total.update(cases=tally.cases, crashes=crashed, hangs=hung)
    counts = ", ".join(f"{total[each]} {each}" for each in ("cases", "crashes", "hangs"))
    print(f"seed {asked.seed}: {counts}")
    sys.exit(bool(total["crashes"] or total["hangs"]))


if __name__ == "__main__":
    main()
