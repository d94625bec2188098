"""The cache of kernels: what was compiled once is found again, and nothing else changes."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from edgeopt.artifact import Bundle
from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.compile.canonical import canonical_text, read_function
from edgeopt.compile.cpu import describe_cpu
from edgeopt.compile.kernels.rule import sorted_functions
from edgeopt.model.oracle import run_model
from edgeopt.store import KERNELS
from tests.compile.kit import distance, draw_tokens, lower_natively, make_target, save_encoder
from tests.host.test_compile import describe, run_program

pytestmark = pytest.mark.host


def make_cache(folder: Path) -> Path:
    """Make a cache without kernels that shares the compiled runtime."""
    folder.mkdir()
    for name in ("runner", "zig"):
        shared = cache_folder() / name
        shared.mkdir(exist_ok=True)
        (folder / name).symlink_to(shared)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make_cache(tmp_path / "cache")


def objects_of(cache: Path) -> dict[str, int]:
    """Map the cached objects to the time of their last change, in nanoseconds."""
    return {path.name: path.stat().st_mtime_ns for path in (cache / KERNELS).glob("*/*")}


def compile_one(
    path: Path, folder: Path, cache: Path, *, machine: str = "x86_64", static: bool = False
) -> Bundle:
    target = make_target(machine, static=static)
    return compile_model(describe(path), target, directory=folder, cache=cache)


def files_of(bundle: Bundle) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(bundle.path.iterdir())}


@pytest.mark.parametrize(
    ("machine", "static"),
    [("x86_64", False), ("x86_64", True), ("aarch64", True), ("arm", True)],
)
def test_a_bundle_from_cached_kernels_has_the_same_bytes_and_computes_the_same(
    machine: str, static: bool, tmp_path: Path, cache: Path
) -> None:
    path = save_encoder(tmp_path / "model.onnx", method="float32")
    cold = compile_one(path, tmp_path / "cold", cache, machine=machine, static=static)
    made = objects_of(cache)
    warm = compile_one(path, tmp_path / "warm", cache, machine=machine, static=static)
    assert made
    assert objects_of(cache) == made
    assert files_of(cold) == files_of(warm)
    assert cold.digest == warm.digest
    for seed in (0, 1, 2):
        feeds = draw_tokens(seed)
        found, _ = run_program(warm, feeds, tmp_path)
        assert distance(found, run_model(path, feeds)[0]) < 1e-5


def rename(path: Path, output: Path) -> Path:
    """Give every value and node between the inputs and outputs of a model another name."""
    model = onnx.load(path)
    kept = {each.name for each in (*model.graph.input, *model.graph.output)}

    def other(name: str) -> str:
        return name if name in kept or not name else f"a_much_longer_name_of_{name}"

    for stored in model.graph.initializer:
        stored.name = other(stored.name)
    for node in model.graph.node:
        node.name = other(node.name)
        node.input[:] = [other(each) for each in node.input]
        node.output[:] = [other(each) for each in node.output]
    onnx.save(model, output)
    return output


def test_another_model_makes_only_the_kernels_that_it_does_not_share(
    tmp_path: Path, cache: Path
) -> None:
    plain = save_encoder(tmp_path / "plain.onnx", method="float32")
    compile_one(plain, tmp_path / "plain", cache)
    first = objects_of(cache)
    compile_one(rename(plain, tmp_path / "renamed.onnx"), tmp_path / "renamed", cache)
    assert objects_of(cache) == first
    mixed = save_encoder(tmp_path / "mixed.onnx", method="int8-dynamic")
    bundle = compile_one(mixed, tmp_path / "mixed", cache)
    second = objects_of(cache)
    assert first.items() < second.items()
    empty = make_cache(tmp_path / "empty")
    alone = compile_one(mixed, tmp_path / "alone", empty)
    assert files_of(alone) == files_of(bundle)
    assert len(second) - len(first) < len(objects_of(empty))


def test_another_core_has_kernels_of_its_own(tmp_path: Path, cache: Path) -> None:
    path = save_encoder(tmp_path / "model.onnx", method="float32")
    compile_one(path, tmp_path / "here", cache)
    first = objects_of(cache)
    compile_one(path, tmp_path / "there", cache, static=True)
    assert len(objects_of(cache)) == 2 * len(first)


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_object_is_made_again(damage: str, tmp_path: Path, cache: Path) -> None:
    path = save_encoder(tmp_path / "model.onnx", method="float32")
    cold = compile_one(path, tmp_path / "cold", cache)
    places = sorted((cache / KERNELS).glob("*/*"))
    whole = {place: place.read_bytes() for place in places}
    for place, data in whole.items():
        changed = data[:-1] + bytes([data[-1] ^ 1])
        place.write_bytes({"cut": data[:-9], "changed": changed}[damage])
    again = compile_one(path, tmp_path / "again", cache)
    assert files_of(again) == files_of(cold)
    assert {place: place.read_bytes() for place in places} == whole


_ALONE = """
import sys
from pathlib import Path
from tests.host.test_kernel_cache import compile_one
print(compile_one(*map(Path, sys.argv[1:])).digest)
"""


def test_processes_at_once_share_a_cache(tmp_path: Path, cache: Path) -> None:
    path = save_encoder(tmp_path / "model.onnx", method="float32")
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _ALONE, str(path), str(tmp_path / f"out{seed}"), str(cache)],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
        )
        for seed in (1, 2)
    ]
    digests = {run.communicate()[0].split()[-1].decode() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    made = objects_of(cache)
    assert digests == {compile_one(path, tmp_path / "warm", cache).digest}
    assert objects_of(cache) == made
    assert not list((cache / KERNELS).glob("*/.*"))


@pytest.mark.parametrize("method", ["float32", "int8-static"])
def test_the_text_of_a_function_is_the_function(method: str, tmp_path: Path) -> None:
    import tvm_ffi

    cpu = describe_cpu(make_target("aarch64"))
    module, _ = lower_natively(save_encoder(tmp_path / "model.onnx", method=method), cpu)
    for _, function in sorted_functions(module):
        text = canonical_text(function)
        read = read_function(text)
        assert tvm_ffi.structural_equal(read, function, map_free_vars=True)
        assert canonical_text(function) == text
        assert str(Path(__file__).parents[2]) not in text
