"""edgeopt tune as a user types it, on this machine, and what later compiles make of it."""

import itertools
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.compile.tuning import check_tiles, find_choices, rank_tiles
from edgeopt.model.describe import facts
from edgeopt.model.load import read_model
from edgeopt.model.product import extract_product, find_products
from edgeopt.target import load_target
from edgeopt.tiles import TileFile, TileKey, name_cpu, read_tiles, write_tiles
from tests.test_tune import found

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]

ROWS, WIDE, NARROW = 16, 96, 48
TARGET = load_target("x86-64")
CPU = name_cpu(TARGET)
FIRST = TileKey("gemm", ROWS, WIDE, NARROW, "float32")
SECOND = TileKey("gemm", ROWS, NARROW, WIDE, "float32")


def write_mlp(path: Path, *, layers: int = 4) -> None:
    """Layers that widen and narrow in turn: two distinct products, each several times."""
    random = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for layer in range(layers):
        sizes = (NARROW, WIDE) if layer % 2 == 0 else (WIDE, NARROW)
        values = (random.normal(size=sizes) / 8).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"p{layer}"]))
        nodes.append(helper.make_node("Tanh", [f"p{layer}"], [f"y{layer}"]))
        last = f"y{layer}"
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [ROWS, NARROW])]
        for name in ("x", last)
    )
    graph = helper.make_graph(nodes, "mlp", inputs, outputs, weights)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


class User:
    """Somebody with a home of their own, and a model in it."""

    def __init__(self, home: Path) -> None:
        from edgeopt.cli.places import cache_folder

        self.home = home
        self.tiles = home / "data" / "tiles" / f"{CPU}.json"
        self.environment = os.environ | {
            "HOME": str(home),
            "EDGEOPT_DATA_DIR": str(home / "data"),
            "EDGEOPT_CACHE_DIR": str(cache_folder()),
        }
        write_mlp(home / "mlp.onnx")

    def argv(self, verb: str, *arguments: str) -> list[str]:
        words = ["--target", "x86-64", "--model", "mlp.onnx", "--profile", "float32"]
        return [sys.executable, "-m", "edgeopt", verb, *words, *arguments]

    def types(self, verb: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.argv(verb, *arguments),
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def deploys(self) -> tuple[str, str]:
        """Deploy, which compares with onnxruntime; return the release's digest and the story."""
        done = self.types("deploy", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert all(row["parity"]["max_rel"] < 1e-5 for row in report["rows"])
        return report["digest"], done.stderr

    def keeps(self, *tiles: tuple[TileKey, tuple[int, int]]) -> None:
        """Write the file of tiles by hand."""
        names = ("kind", "rows", "columns", "depth", "dtype")
        entries = [
            found(**{name: getattr(key, name) for name in names}, tile=tile) for key, tile in tiles
        ]
        write_tiles(self.tiles, TileFile(cpu=CPU).merged(entries))


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def test_what_is_measured_is_stored_shown_and_cleared(user: User) -> None:
    done = user.types("tune", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["path"] == str(user.tiles)
    stored = read_tiles(user.tiles, CPU)
    assert {each.key for each in stored.tiles} == {FIRST, SECOND}
    assert {each.measured for each in stored.tiles} == {"time"}
    assert document["tiles"] == stored.model_dump(mode="json")["tiles"]
    # Nothing of the trials is left where deployments are.
    assert not list((user.home / ".edgeopt").rglob("model.so"))
    shown = user.types("tune", "--show")
    assert str(FIRST) in shown.stdout
    assert user.types("tune", "--clear").returncode == 0
    assert not user.tiles.exists()


def test_only_as_many_kernels_as_were_asked_for_are_measured(user: User) -> None:
    assert user.types("tune", "--kernels", "1").returncode == 0
    assert len(read_tiles(user.tiles, CPU).tiles) == 1


def test_a_later_compile_uses_a_stored_tile_and_its_outputs_are_the_same(user: User) -> None:
    usual, _ = user.deploys()
    user.keeps((FIRST, rank_tiles(FIRST, TARGET)[-1]))
    other, _ = user.deploys()
    assert other != usual
    user.keeps((FIRST, rank_tiles(FIRST, TARGET)[0]))
    assert user.deploys()[0] == usual


def test_a_tile_that_cannot_be_is_ignored_with_a_warning(user: User) -> None:
    unknown = TileKey("loom", 1, 2, 3, "float32")
    user.keeps((FIRST, (99, 7)), (unknown, (4, 8)))
    _, story = user.deploys()
    assert f"{FIRST}: a tile of 99x7 is impossible; the default is used" in story
    assert f"{unknown}: there is no such kernel" in story


def test_a_broken_file_stops_a_compile_and_can_be_cleared(user: User) -> None:
    user.tiles.parent.mkdir(parents=True)
    user.tiles.write_text('{"cpu": 1')
    refused = user.types("deploy")
    assert refused.returncode == 2
    assert "edgeopt tune --clear" in refused.stderr
    assert user.types("tune", "--clear").returncode == 0


def test_ctrl_c_keeps_what_was_measured(user: User) -> None:
    process = subprocess.Popen(
        user.argv("tune"),
        cwd=user.home,
        env=user.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stdout is not None
    with process, process.stderr, process.stdout:
        # The second kernel has begun: the first one is measured.
        begun = list(itertools.islice(_kernels_of(process.stderr), 2))
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(60) == 130
    assert len(begun) == 2
    assert len(read_tiles(user.tiles, CPU).tiles) == 1
    assert not list((user.home / ".edgeopt").rglob("model.so"))


def _kernels_of(story: IO[str]) -> Iterator[str]:
    return (line for line in story if "tiles ..." in line)


@pytest.mark.parametrize("target", ["x86-64", "rpi4", "rpi5", "generic-armv7"])
def test_each_product_of_a_model_has_several_possible_tiles(target: str, tmp_path: Path) -> None:
    write_mlp(tmp_path / "mlp.onnx")
    whole = onnx.load(tmp_path / "mlp.onnx")
    model = read_model(tmp_path / "mlp.onnx", facts(whole), provenance=("mlp.onnx",))
    described = load_target(target)
    products = find_products(model)
    assert [each.flops for each in products] == [2 * 2 * ROWS * WIDE * NARROW] * 2
    for number, product in enumerate(products):
        one = extract_product(model, product, directory=tmp_path / str(number))
        (key,) = find_choices(one, described)
        tiles = rank_tiles(key, described)
        assert len(tiles) == len(set(tiles)) > 1
        assert all(check_tiles({key: tile}, described) == ({key: tile}, []) for tile in tiles)
