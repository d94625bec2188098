"""A compiled model on this machine, with the real device program, against onnxruntime."""

from pathlib import Path, PurePosixPath

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.artifact import Bundle, Model
from edgeopt.board.facts import read_facts
from edgeopt.board.local import LocalBoard
from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.deploy import Smoke, deploy_bundle, read_status
from edgeopt.errors import BoardIncompatible, DeployFailed, ParityBroken
from edgeopt.measure import measure_release, summarize_samples
from edgeopt.model import load_model, normalize_model
from edgeopt.model.oracle import run_samples
from edgeopt.target import load_target
from edgeopt.verify import check_parity, make_parity

pytestmark = pytest.mark.host

WIDTH, CLASSES = 64, 6
ROOT = PurePosixPath("~/.edgeopt")


def write_classifier(path: Path) -> None:
    """Write relu(x @ A) @ B + c: [1, 64] to [1, 6]."""
    random = np.random.default_rng(0)
    weights = {
        "a": random.normal(size=(WIDTH, WIDTH)),
        "b": random.normal(size=(WIDTH, CLASSES)),
        "c": random.normal(size=(CLASSES,)),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "a"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "b"], ["scores"]),
            helper.make_node("Add", ["scores", "c"], ["y"]),
        ],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Bundle]:
    folder = tmp_path_factory.mktemp("built")
    write_classifier(folder / "tiny.onnx")
    loaded = load_model("tiny.onnx", directory=folder / "loaded", search=folder)
    model = normalize_model(loaded, shapes={}, directory=folder / "model")
    target = load_target("x86-64")
    bundle = compile_model(model, target, directory=folder / "bundle", cache=cache_folder())
    return model, bundle


def inputs(count: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"x": random.normal(size=(count, 1, WIDTH)).astype(np.float32)}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_deployed_model_computes_what_onnxruntime_computes(
    tmp_path: Path, built: tuple[Model, Bundle], seed: int
) -> None:
    model, bundle = built
    board = LocalBoard(home=tmp_path)
    feeds = inputs(5, seed)
    expected = run_samples(model, feeds)
    try:
        release = deploy_bundle(
            bundle,
            board,
            facts=read_facts(board),
            app="tiny",
            root=ROOT,
            smoke=Smoke(feeds={"x": feeds["x"][:1]}, expected=[expected[0][:1]], tolerance=1e-4),
            directory=tmp_path / "w",
        )
    except BoardIncompatible as error:
        pytest.skip(f"this machine is not an x86-64-v3: {error.why}")
    measurement, outputs = measure_release(
        release,
        bundle,
        board,
        feeds=feeds,
        warmup=2,
        iterations=50,
        threads=1,
        directory=tmp_path / "w",
    )
    parity = make_parity(outputs, expected, names=[each.name for each in bundle.outputs])
    check_parity(parity, 1e-4)
    assert (parity.samples, parity.agreement) == (5, 1.0)
    statistics = summarize_samples(measurement.samples_ns)
    assert statistics.count == 50
    assert 0 < statistics.minimum <= statistics.p50 <= statistics.p95
    assert 0 < measurement.memory.peak < 64 << 20
    assert read_status(board, "tiny", root=ROOT, check=True).files_good is True
    wrong = [each.copy() for each in expected]
    wrong[0][4, 0, 2] += 1.0
    with pytest.raises(ParityBroken, match="sample 4"):
        check_parity(make_parity(outputs, wrong), 1e-4)


def test_a_release_that_computes_something_else_is_not_activated(
    tmp_path: Path, built: tuple[Model, Bundle]
) -> None:
    model, bundle = built
    board = LocalBoard(home=tmp_path)
    feeds = inputs(1, 1)
    other = run_samples(model, inputs(1, 2))
    try:
        with pytest.raises(DeployFailed, match="not activated"):
            deploy_bundle(
                bundle,
                board,
                facts=read_facts(board),
                app="tiny",
                root=ROOT,
                smoke=Smoke(feeds=feeds, expected=other),
                directory=tmp_path / "w",
            )
    except BoardIncompatible as error:
        pytest.skip(f"this machine is not an x86-64-v3: {error.why}")
    assert read_status(board, "tiny", root=ROOT).state == "empty"
