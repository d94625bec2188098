"""Bundles with a shell script as the device program, boards that die, and what must hold then."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.artifact import Bundle, BundleFile, Footprint, Release, TensorSpec
from edgeopt.board import Board, Completed, Kind
from edgeopt.board.facts import BoardFacts
from edgeopt.deploy import Smoke, deploy_bundle
from edgeopt.errors import BoardUnreachable

APP = "questions"

#: The model is the identity of its first input; the weights' first word says how to misbehave.
PROGRAM = r"""#!/bin/sh
set -eu
model= first= output= warmup=0 iterations=1 threads=1 samples=1 clock=CLOCK_MONOTONIC_RAW
drawn= readings=20 sensor=null energy=null
while [ $# -gt 0 ]; do
    case $1 in
        --weights) weights=$2 ;;
        --input) first=${first:-$2} ;;
        --output) output=$2 ;;
        --model) model=$2 ;;
        --warmup) warmup=$2 ;;
        --iterations) iterations=$2 ;;
        --threads) threads=$2 ;;
        --samples) samples=$2 ;;
        --energy-ms) drawn=4000000 ;;
        --count-instructions) clock=INSTRUCTIONS; shift; continue ;;
        *) echo '{"error": "unknown option"}' >&2; exit 2 ;;
    esac
    shift 2
done
[ -f "$model" ] || { echo '{"error": "no model"}' >&2; exit 1; }
mode=$(head -n 1 "$weights")
value='\0\0\200?'
case $mode in
    fails) echo '{"error": "the arena cannot be mapped"}' >&2; exit 1 ;;
    illegal) kill -s ILL $$ ;;
    killed) kill -s KILL $$ ;;
    crashes) kill -s SEGV $$ ;;
    hungry)
        # As much as the kernel promises to anyone, and more than it can give.
        total=$(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)
        exec dd if=/dev/zero of=/dev/null count=1 bs=$((total - 1024))k ;;
    fills) dd if=/dev/zero of=/dev/null count=1 bs=24M 2>/dev/null || kill -s KILL $$ ;;
    nan) value='\0\0\300\177' ;;
    current)
        release=${weights%/*}
        [ ! "$release" -ef "${release%/releases/*}/current" ] ||
            { echo '{"error": "not here"}' >&2; exit 1; } ;;
esac
cp "$first" "$output/0.npy"
if [ "$mode" = nan ] || [ "$mode" = wrong ]; then
    head -c 128 "$first" > "$output/0.npy"
    count=$((samples * 4))
    while [ $count -gt 0 ]; do printf "$value" >> "$output/0.npy"; count=$((count - 1)); done
fi
times=; count=$iterations
while [ $count -gt 0 ]; do times=$times${times:+,}$((1000 + count)); count=$((count - 1)); done
shape="$samples, 4"
frequency=1500000 flags='"0x0"'
case $mode in
    mute) flags=null ;;
    metered) sensor='"ina219"' ;;
    sluggish) sensor='"ina219"' readings=3 ;;
    escape) sensor='"ina\u001b[2J"' ;;
    noise) echo 'this is not JSON' ;;
    infinite) times=NaN ;;
    short) times=1000 ;;
    shape) shape="$samples, 5" ;;
    hot) frequency=600000 ;;
    link) rm "$output/0.npy"; ln -s /etc/passwd "$output/0.npy" ;;
esac
if [ "$sensor" != null ] && [ -n "$drawn" ]; then
    energy="{\"idle_uw\": 1500000, \"drawn_uj\": $drawn, \"readings\": $readings,
             \"duration_ns\": 2000000000, \"inferences\": 100}"
fi
cat <<END
{"schema_version": 1, "program": "edgeopt-run", "version": "0.1.0",
 "clock": "$clock", "threads": $threads, "load_ns": 5000, "first_ns": 2000,
 "samples_ns": [$times], "realtime_drift_ns": 0,
 "memory": {"start": 1000000, "loaded": 2000000, "peak": 3000000, "anonymous": 1000000,
            "file_backed": 2000000, "minor_faults": 10, "major_faults": 0},
 "before": {"temperature_c": 40.5, "frequency_khz": [1500000], "throttled": $flags},
 "after": {"temperature_c": null, "frequency_khz": [$frequency], "throttled": $flags},
 "sensor": $sensor, "energy": $energy,
 "outputs": [{"path": "$output/0.npy", "dtype": "float32", "shape": [$shape]}]}
END
"""


def board_facts(**changes: Any) -> BoardFacts:
    """Return what a board says that can run everything made here."""
    facts = BoardFacts(
        machine=platform.machine(),
        kernel_machine=platform.machine(),
        kernel="Linux 6.1.0",
        model="a board of the tests",
        features=("fp", "asimd"),
        processors=(),
        glibc="2.36",
        ram_total=512_000_000,
        ram_available=400_000_000,
        swap_total=0,
        page_size=4096,
        boot_id="b",
        uptime=60.0,
        folder="/",
        free=1_000_000_000,
        writable=True,
        executable=True,
        temperatures={},
        governors=(),
    )
    return facts.model_copy(update=changes)


def layers(count: int = 4, size: int = 500_000, **changed: int) -> bytes:
    """Return seeded layers of size bytes; layer_N=seed makes one of them another."""
    seeds = [changed.get(f"layer_{number}", number) for number in range(count)]
    return b"".join(np.random.default_rng(seed).bytes(size) for seed in seeds)


def make_bundle(
    folder: Path,
    *,
    mode: str = "good",
    seed: int = 0,
    size: int = 40_000,
    weights: bytes | None = None,
) -> Bundle:
    """Write a bundle whose program is the script and whose weights are given, or seeded noise."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    contents = {
        "edgeopt-run": PROGRAM.encode(),
        "model.so": b"code of every bundle",
        "weights.bin": f"{mode}\n".encode() + (weights or random.bytes(size)),
    }
    files = []
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        executable = name == "edgeopt-run"
        files.append(BundleFile(name=name, sha256=digest, size=len(content), executable=executable))
    bundle = Bundle(
        path=folder,
        digest="",
        target="here",
        files=tuple(files),
        inputs=(TensorSpec(name="x", dtype="float32", shape=(4,)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(4,)),),
        footprint=Footprint(
            flash=size, weights=size, weights_resident=size, arena=1000, runtime=1_000_000
        ),
        features=("asimd",),
        machine=platform.machine(),
        glibc="2.17",
    )
    manifest = bundle.model_dump(exclude={"path", "digest"})
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":")) + "\n"
    (folder / "manifest.json").write_text(text)
    return bundle.model_copy(update={"digest": hashlib.sha256(text.encode()).hexdigest()})


def samples_of(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def smoke_of(seed: int = 0, count: int = 1) -> Smoke:
    feed = samples_of(count, seed)
    return Smoke(feeds={"x": feed}, expected=[feed], tolerance=1e-4)


def deploy(bundle: Bundle, board: Board, root: Path, work: Path, **options: Any) -> Release:
    return deploy_bundle(
        bundle,
        board,
        facts=board_facts(),
        app=APP,
        root=PurePosixPath(root),
        smoke=smoke_of(),
        directory=work,
        **options,
    )


@dataclass
class DyingBoard:
    """A board that is lost at its Nth call: before it, after it, or half-way through a put.

    A lost board answers nothing more; one that only `stumbles` fails that call and goes on.
    """

    inner: Board
    at: int = -1
    moment: str = "before"
    stumbles: bool = False
    #: Lost when a script is killed (status 137), as by a power cut.
    fragile: bool = False
    #: Changes the file on its way to the board.
    spoil: Callable[[bytes], bytes] | None = None
    calls: list[str] = field(default_factory=list)
    dead: bool = False

    @property
    def name(self) -> str:
        return "a dying board"

    @property
    def kind(self) -> Kind:
        return "native"

    def close(self) -> None:
        pass

    def _lose(self) -> None:
        self.dead = not self.stumbles
        raise BoardUnreachable("the board is gone")

    def _enter(self, what: str) -> bool:
        """Count the call; return whether the board is lost after it."""
        if self.dead:
            raise BoardUnreachable("the board is still gone")
        self.calls.append(what)
        due = len(self.calls) - 1 == self.at
        if due and self.moment == "before":
            self._lose()
        return due

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        due = self._enter("run")
        done = self.inner.run(argv, stdin=stdin, timeout=timeout)
        if due and self.stumbles:
            return Completed(tuple(argv), 1, b"", b"it stumbled")
        if due or (self.fragile and done.status == 137):
            self._lose()
        return done

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        due = self._enter("put")
        content = local.read_bytes()
        if self.spoil is not None:
            content = self.spoil(content)
        if due and self.moment == "half":
            content = content[: (offset + len(content)) // 2]
        wire = local.with_name(f".wire-{local.name}")
        wire.write_bytes(content)
        self.inner.put(wire, remote, offset=offset, timeout=timeout)
        wire.unlink()
        if due:
            self._lose()

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        due = self._enter("get")
        self.inner.get(remote, local, limit=limit, timeout=timeout)
        if due:
            self._lose()


def link_of(root: Path, name: str = "current") -> str:
    """Return the digest that a link points to, or ""."""
    link = root / "apps" / APP / name
    return link.readlink().name if link.is_symlink() else ""


def assert_whole(root: Path, digest: str) -> None:
    """Every file of the release is there with the digest that its name promises."""
    release = root / "apps" / APP / "releases" / digest
    manifest = (release / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == digest
    for each in json.loads(manifest)["files"]:
        content = (release / each["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == each["sha256"], each["name"]
        assert bool((release / each["name"]).stat().st_mode & 0o100) == each["executable"]


def leftovers(root: Path) -> list[str]:
    """Return everything that a finished deploy must not leave, interrupted uploads included."""
    found = list(root.rglob(".tmp-*")) + list(root.glob("objects/*.part"))
    found += list(root.glob("runs/*")) + list(root.glob("apps/*/state"))
    found += list(root.glob("apps/*/releases/*/unproven"))
    return sorted(str(path.relative_to(root)) for path in found)


def objects_of(*bundles: Bundle) -> set[str]:
    """Return the names of the objects that these bundles consist of."""
    return {each.sha256 for bundle in bundles for each in bundle.files} | {
        bundle.digest for bundle in bundles
    }


def copy_tree(source: Path, target: Path) -> Path:
    """Copy a deploy directory with its hard and symbolic links."""
    subprocess.run(["cp", "-a", source, target], check=True)
    return target
