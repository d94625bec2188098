"""Models that lie, crash, hang or are broken: every one ends in an error, none in a crash."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import ConfigError, ModelError
from edgeopt.model import load_model, normalize_model
from edgeopt.model.isolate import LOG, Limits, run_isolated
from edgeopt.model.oracle import run_model, run_samples, seeded_inputs
from tests.graphs import image_model, normal, save_graph, text_model
from tests.tiny import write_tiny

pytestmark = pytest.mark.host


def external_model(folder: Path, location: str, *, offset: int = 0) -> Path:
    """A MatMul whose 8x8 weight is said to lie at location."""
    tensor = TensorProto(
        name="w", dims=[8, 8], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, "offset": offset, "length": 256}.items():
        tensor.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "external",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    path = folder / "external.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_data_in_the_folder_is_taken_into_the_one_file(tmp_path: Path) -> None:
    weight = normal(0, 8, 8)
    (tmp_path / "w.bin").write_bytes(bytes(64) + weight.tobytes())
    external_model(tmp_path, "w.bin", offset=64)
    loaded = load_model("external.onnx", directory=tmp_path / "out", search=tmp_path)
    stored = onnx.load(loaded.path, load_external_data=False).graph.initializer[0]
    assert np.array_equal(numpy_helper.to_array(stored), weight)
    assert loaded.inputs[0].shape == (-1, 8)


@pytest.mark.parametrize("attack", ["traversal", "absolute", "symlink", "hardlink", "offset"])
def test_external_data_that_leads_elsewhere_is_refused(tmp_path: Path, attack: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(256))
    (folder / "w.bin").write_bytes(bytes(256))
    location = {"traversal": "../secret", "absolute": str(secret), "offset": "w.bin"}.get(
        attack, "link"
    )
    if attack == "symlink":
        (folder / "link").symlink_to(secret)
    if attack == "hardlink":
        os.link(secret, folder / "link")
    external_model(folder, location, offset=1 if attack == "offset" else 0)
    with pytest.raises(ModelError, match="external data of tensor 'w' is refused"):
        load_model("external.onnx", directory=tmp_path / "out", search=folder)


def test_normalizing_fixes_shapes_folds_and_repeats_to_the_byte(tmp_path: Path) -> None:
    text = """
    dynamic (float[N,8] x) => (float[N,4] y) {
        two = Constant<value = float {2.0}>()
        four = Mul(two, two)
        scaled = Mul(x, four)
        same = Identity(scaled)
        y = MatMul(same, w)
    }"""
    save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 8, 4)})
    loaded = load_model("m.onnx", directory=tmp_path / "load", search=tmp_path)
    made = [
        normalize_model(loaded, shapes={"x": (3, 8)}, directory=tmp_path / name)
        for name in ("one", "two")
    ]
    assert made[0].path.read_bytes() == made[1].path.read_bytes()
    assert made[0].inputs[0].shape == (3, 8)
    assert made[0].outputs[0].shape == (3, 4)
    assert made[0].provenance == ("m.onnx", "normalized")
    assert [node.op_type for node in onnx.load(made[0].path).graph.node] == ["Mul", "MatMul"]
    feeds = seeded_inputs(made[0], 5)
    expected = run_model(loaded, feeds, optimize=False)[0]
    assert np.allclose(run_model(made[0], feeds)[0], expected, rtol=1e-5)


@pytest.mark.parametrize("shaped", [True, False])
def test_an_old_opset_is_raised_and_means_the_same(tmp_path: Path, shaped: bool) -> None:
    model = onnx.parser.parse_model("""
    <ir_version: 7, opset_import: ["" : 11]>
    old (float[1,4,2] x) => (float[1,4] y) {
        s = Softmax<axis=1>(x)
        y = ReduceSum<axes=[2], keepdims=0>(s)
    }
    """)
    if not shaped:
        # As some exporters leave it.
        model.graph.output[0].type.tensor_type.ClearField("shape")
    (tmp_path / "old.onnx").write_bytes(model.SerializeToString())
    loaded = load_model("old.onnx", directory=tmp_path / "load", search=tmp_path)
    made = normalize_model(loaded, shapes={}, directory=tmp_path / "out")
    assert onnx.load(made.path).opset_import[0].version >= 17


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_a_number_is_named(tmp_path: Path, value: float) -> None:
    weight = normal(0, 8, 4)
    weight[3, 2] = value
    text = "agraph (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"
    save_graph(tmp_path / "m.onnx", text, {"w": weight})
    loaded = load_model("m.onnx", directory=tmp_path / "load", search=tmp_path)
    with pytest.raises(ModelError, match="tensor 'w' holds values that are not finite"):
        normalize_model(loaded, shapes={}, directory=tmp_path / "out")


def test_a_model_that_cannot_run_on_the_given_shape_is_refused(tmp_path: Path) -> None:
    text = "agraph (float[N,K] x) => (float[N,4] y) { y = MatMul(x, w) }"
    save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 8, 4)})
    loaded = load_model("m.onnx", directory=tmp_path / "load", search=tmp_path)
    with pytest.raises(ModelError) as caught:
        normalize_model(loaded, shapes={"x": (1, 9)}, directory=tmp_path / "out")
    assert "Traceback" not in str(caught.value)
    assert "Traceback" in (tmp_path / "out" / LOG).read_text()


def test_an_output_without_a_shape_gets_its_own(tmp_path: Path) -> None:
    text = "agraph (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }"
    path = save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 8, 4)})
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    path.write_bytes(model.SerializeToString())
    loaded = load_model("m.onnx", directory=tmp_path / "load", search=tmp_path)
    normal_model = normalize_model(loaded, shapes={}, directory=tmp_path / "out")
    assert normal_model.outputs[0].shape == (1, 4)


def test_an_output_whose_shape_depends_on_values_is_refused(tmp_path: Path) -> None:
    text = "agraph (float[1,64] x) => (int64[1,N] y) { r = Relu(x) y = NonZero(r) }"
    save_graph(tmp_path / "m.onnx", text, {})
    loaded = load_model("m.onnx", directory=tmp_path / "load", search=tmp_path)
    with pytest.raises(ModelError, match="depends on the values"):
        normalize_model(loaded, shapes={}, directory=tmp_path / "out")


def write_factory(folder: Path, body: str) -> None:
    (folder / "made.py").write_text(f"import os, signal, sys, torch\n\ndef build():\n{body}\n")


def test_a_torch_factory_is_exported_under_the_names_of_its_inputs(tmp_path: Path) -> None:
    write_factory(
        tmp_path,
        "    print('noise on stdout')\n"
        "    class Net(torch.nn.Module):\n"
        "        def forward(self, left, right):\n"
        "            return left @ right\n"
        "    return Net(), {'left': torch.ones(2, 3), 'right': torch.ones(3, 4)}",
    )
    loaded = load_model("made:build", directory=tmp_path / "out", search=tmp_path)
    assert [(each.name, each.shape) for each in loaded.inputs] == [
        ("left", (2, 3)),
        ("right", (3, 4)),
    ]
    feeds = seeded_inputs(loaded, 0)
    expected = feeds["left"].astype(np.float64) @ feeds["right"].astype(np.float64)
    assert np.allclose(run_model(loaded, feeds)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("    os.kill(os.getpid(), signal.SIGSEGV)", ModelError, "SIGSEGV"),
        ("    sys.exit(3)", ModelError, "status 3"),
        ("    raise ValueError('no such checkpoint')", ModelError, "no such checkpoint"),
        ("    return 'nothing'", ConfigError, "it returns str"),
        ("    return torch.nn.ReLU(), {'wrong': torch.ones(1)}", ConfigError, "named input"),
    ],
)
def test_a_factory_that_fails_ends_in_one_error(
    tmp_path: Path, body: str, error: type[Exception], words: str
) -> None:
    write_factory(tmp_path, body)
    with pytest.raises(error, match=words):
        load_model("made:build", directory=tmp_path / "out", search=tmp_path)


def test_a_factory_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    for spec in ("absent:build", "model.pt", "../model"):
        with pytest.raises(ConfigError):
            load_model(spec, directory=tmp_path / "out", search=tmp_path)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(wall=0.05), "too long"),
        (Limits(address_space=150 * 2**20), "cannot be read"),
        (Limits(file=1000), "cannot be read"),
    ],
)
def test_a_worker_ends_at_its_limits(tmp_path: Path, limits: Limits, words: str) -> None:
    model = image_model(tmp_path)
    request = {
        "path": str(model.path),
        "original": str(model.path),
        "output": str(tmp_path / "out.onnx"),
        "shapes": {},
        "values": {},
    }
    started = time.monotonic()
    with pytest.raises(ModelError, match=words):
        run_isolated("normalize", request, directory=tmp_path, limits=limits)
    assert time.monotonic() - started < 30


#: Runs each damaged file in a fork of one process that has loaded the libraries already.
FUZZ = """
import os, resource, sys
from pathlib import Path
from edgeopt.model import describe, simplify

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for path in sorted(Path(sys.argv[1]).glob("*.onnx")):
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        folder = path.with_suffix("")
        folder.mkdir()
        status = 1
        try:
            describe.describe_file(str(path))
            simplify.normalize_file(str(path), str(path), str(folder / "out.onnx"), {}, {})
            status = 0
        finally:
            os._exit(status)
    print(path.name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_two_hundred_damaged_files_end_in_errors_and_none_hangs(tmp_path: Path) -> None:
    whole = text_model(tmp_path).path.read_bytes()
    folder = tmp_path / "damaged"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(200):
        data = bytearray(whole)
        if index % 3 == 0:
            data = data[: int(generator.integers(1, len(data)))]
        elif index % 3 == 1:
            data = bytearray(generator.bytes(int(generator.integers(1, 4000))))
        else:
            # In the part that is not weights, where every byte means something.
            for place in generator.integers(0, 700, 4):
                data[place] = int(generator.integers(0, 256))
        (folder / f"{index:03}.onnx").write_bytes(data)
    (folder / "whole.onnx").write_bytes(whole)
    ran = subprocess.run(
        [sys.executable, "-c", FUZZ, str(folder)], capture_output=True, timeout=300, check=True
    )
    ends = dict(line.split() for line in ran.stdout.decode().splitlines())
    assert len(ends) == 201
    assert ends["whole.onnx"] == "0"
    assert all(ends[f"{index:03}.onnx"] != "0" for index in range(200) if index % 3 < 2)
    assert str(-signal.SIGXCPU) not in ends.values()


def _take_in(folder: Path, name: str) -> None:
    loaded = load_model(name, directory=folder / "load", search=folder)
    normalize_model(loaded, shapes={}, directory=folder / "out")


@pytest.mark.parametrize("kind", ["truncated", "random", "cyclic", "unknown operator", "huge"])
def test_a_broken_file_is_a_model_error_without_a_traceback(tmp_path: Path, kind: str) -> None:
    whole = text_model(tmp_path).path.read_bytes()
    model = onnx.load_from_string(whole)
    if kind == "cyclic":
        model.graph.node[0].input[1] = "mean"
    if kind == "unknown operator":
        model.graph.node[3].op_type = "Reluu"
    if kind == "huge":
        model.graph.initializer[0].dims[0] = 2**50
    data = model.SerializeToString()
    data = {"truncated": whole[:-999], "random": np.random.default_rng(0).bytes(999)}.get(
        kind, data
    )
    (tmp_path / "broken.onnx").write_bytes(data)
    with pytest.raises(ModelError) as caught:
        _take_in(tmp_path, "broken.onnx")
    assert "Traceback" not in str(caught.value)
    assert caught.value.why
    assert caught.value.fix


def test_an_input_given_a_value_is_a_constant_and_folds_its_branch(tmp_path: Path) -> None:
    text = """
    choose (float[N,8] x, int64 rate) => (float[N,8] y) {
        same = Equal(rate, wanted)
        y = If<
            then_branch = one () => (float[N,8] a) { a = Relu(x) },
            else_branch = two () => (float[N,8] b) { b = Neg(x) }
        >(same)
    }"""
    save_graph(tmp_path / "m.onnx", text, {"wanted": np.array(16000)})
    loaded = load_model("m.onnx", directory=tmp_path / "load", search=tmp_path)
    for value, operator in ((16000, "Relu"), (8000, "Neg")):
        made = normalize_model(
            loaded, shapes={"x": (2, 8)}, values={"rate": value}, directory=tmp_path / operator
        )
        assert [each.name for each in made.inputs] == ["x"]
        assert [node.op_type for node in onnx.load(made.path).graph.node] == [operator]


def test_a_recurrent_layer_stays_one_operator(tmp_path: Path) -> None:
    text = """
    tagger (float[T,1,5] x) => (float[T,1,1,7] y) {
        y, last, cell = LSTM<hidden_size=7>(x, w, r, b)
    }"""
    weights = {"w": normal(0, 1, 28, 5), "r": normal(1, 1, 28, 7), "b": normal(2, 1, 56)}
    save_graph(tmp_path / "m.onnx", text, weights)
    loaded = load_model("m.onnx", directory=tmp_path / "load", search=tmp_path)
    made = normalize_model(loaded, shapes={"x": (4, 1, 5)}, directory=tmp_path / "out")
    found = [node.op_type for node in onnx.load(made.path).graph.node]
    assert "LSTM" in found
    assert "MatMul" not in found


def test_a_speech_detector_loses_its_branches(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        pytest.skip("silero-vad is absent; run: pip install --no-deps silero-vad==6.2.3")
    models = Path(spec.origin).parent / "data"
    rate = {"sr": 16000.0}
    cases: dict[str, dict[str, float]] = {
        "silero_vad": rate,
        "silero_vad_op18_ifless": rate,
        "silero_vad_half": {},
    }
    for name, values in cases.items():
        folder = tmp_path / name
        loaded = load_model(f"{name}.onnx", directory=folder, search=models)
        shapes = {"input": (1, 576), "state": (2, 1, 128)}
        made = normalize_model(loaded, shapes=shapes, values=values, directory=folder)
        operators = {node.op_type for node in onnx.load(made.path).graph.node}
        assert not operators & {"If", "Equal"}
        assert [each.shape for each in made.outputs] == [(1, 1), (2, 1, 128)]


def test_a_model_without_inputs_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([node], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    loaded = load_model("m.onnx", directory=tmp_path / "load", search=tmp_path)
    with pytest.raises(ModelError, match="no inputs"):
        normalize_model(loaded, shapes={}, values={"x": 1.0}, directory=tmp_path / "out")


def test_a_factory_that_exits_is_no_bug(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys\ndef build(): sys.exit(0)\n")
    with pytest.raises(ModelError, match="without an answer"):
        load_model("leaves:build", directory=tmp_path / "out", search=tmp_path)


def test_samples_that_a_graph_cannot_take_are_refused(tmp_path: Path) -> None:
    model = onnx.load(write_tiny(tmp_path) / "tiny.onnx")
    assert model.graph.input[0].name == "ids"
    with pytest.raises(ModelError, match="out of data bounds"):
        run_samples(tmp_path / "tiny.onnx", {"ids": np.full((1, 1, 8), 9000)})


def test_weights_stay_as_they_are_stored(tmp_path: Path) -> None:
    text = """
    stored (float[1,32] x) => (float[1,40] y) {
        codes = QuantizeLinear(x, scale, zero)
        left = DequantizeLinear(codes, scale, zero)
        right = DequantizeLinear(weight, scale)
        hidden = MatMul(left, right)
        wide = Cast<to=1>(half)
        y = MatMul(hidden, wide)
    }"""
    stored: dict[str, np.ndarray] = {
        "scale": np.array(0.05, np.float32),
        "zero": np.array(3, np.uint8),
        "weight": np.arange(32 * 24, dtype=np.int8).reshape(32, 24),
        "half": normal(0, 24, 40).astype(np.float16),
    }
    save_graph(tmp_path / "m.onnx", text, stored)
    loaded = load_model("m.onnx", directory=tmp_path / "load", search=tmp_path)
    made = normalize_model(loaded, shapes={}, directory=tmp_path / "out")
    kinds = {each.name: each.data_type for each in onnx.load(made.path).graph.initializer}
    assert kinds["weight"] == TensorProto.INT8
    assert kinds["half"] == TensorProto.FLOAT16
    assert [each.name for each in made.inputs] == ["x"]
