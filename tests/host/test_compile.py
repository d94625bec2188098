"""The compile stage: bundles that run, say what they need, and are the same every time."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeopt.artifact import Bundle, Model, TensorSpec
from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.compile.build import MANIFEST, PROGRAM, WEIGHTS
from edgeopt.compile.importer import CONVERTED, CONVERTED_MICROSOFT
from edgeopt.compile.weights import read_index
from edgeopt.errors import OperatorUnsupported
from edgeopt.model.operators import KNOWN, KNOWN_MICROSOFT, check_operators
from edgeopt.model.oracle import run_model
from tests import graphs
from tests.compile.kit import Array, distance, draw_tokens, make_target, save_encoder

pytestmark = pytest.mark.host

SEEDS = (0, 1, 2)
METHODS = ("float32", "float16", "int8-weights", "int8-dynamic", "int8-static")
EMULATORS = {"x86_64": "", "aarch64": "qemu-aarch64-static", "arm": "qemu-arm-static"}


def describe(path: Path) -> Model:
    """Describe an encoder of the kit as the normalize stage would."""
    tokens = [
        TensorSpec(name=name, dtype="int64", shape=(1, 12))
        for name in ("input_ids", "attention_mask")
    ]
    return Model(
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        inputs=tuple(tokens),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 5)),),
        parameters=1,
        provenance=("test",),
    )


def compile_encoder(
    folder: Path, machine: str, *, method: str = "float32", **options: Any
) -> Bundle:
    path = save_encoder(folder / f"{method}.onnx", method=method)
    target = make_target(machine, static=options.pop("static", False))
    out = folder / f"bundle-{machine}-{method}"
    return compile_model(describe(path), target, directory=out, cache=cache_folder(), **options)


def run_program(
    bundle: Bundle, feeds: Mapping[str, Array], folder: Path, *, iterations: int = 1
) -> tuple[Array, dict[str, Any]]:
    """Run the bundle's own program, emulated where it is not this machine's."""
    command = [str(bundle.path / PROGRAM), "--weights", str(bundle.path / WEIGHTS)]
    emulator = EMULATORS[bundle.machine]
    if emulator and shutil.which(emulator) is None:
        pytest.skip(f"no {emulator}; run: apt-get install qemu-user-static")
    if (bundle.path / "model.so").exists():
        command += ["--model", str(bundle.path / "model.so")]
    for name, value in feeds.items():
        np.save(folder / f"{name}.npy", value)
        command += ["--input", str(folder / f"{name}.npy")]
    command += ["--output", str(folder / "out"), "--warmup", "0"]
    command += ["--iterations", str(iterations)]
    done = subprocess.run(
        [*([emulator] if emulator else []), *command, "--threads", "2"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "out" / "0.npy"), json.loads(done.stdout)


@pytest.mark.parametrize("method", METHODS)
def test_a_bundle_computes_what_onnxruntime_computes(method: str, tmp_path: Path) -> None:
    bundle = compile_encoder(tmp_path, "x86_64", method=method)
    assert bundle.unscheduled == ()
    for seed in SEEDS:
        feeds = draw_tokens(seed)
        found, _ = run_program(bundle, feeds, tmp_path)
        wanted = run_model(tmp_path / f"{method}.onnx", feeds)[0]
        # A sum in another order may move a code by one where activations are quantized.
        limit = 5e-2 if method in ("int8-dynamic", "int8-static") else 1e-5
        assert distance(found.reshape(wanted.shape), wanted) < limit


@pytest.mark.parametrize("method", ["float32", "float16", "int8-static"])
@pytest.mark.parametrize("machine", ["aarch64", "arm"])
def test_static_programs_for_other_machines_compute_the_same(
    machine: str, method: str, tmp_path: Path
) -> None:
    bundle = compile_encoder(tmp_path, machine, method=method, static=True)
    assert bundle.glibc == ""
    assert [file.name for file in bundle.files] == [PROGRAM, WEIGHTS]
    for seed in SEEDS:
        feeds = draw_tokens(seed)
        found, _ = run_program(bundle, feeds, tmp_path)
        wanted = run_model(tmp_path / f"{method}.onnx", feeds)[0]
        limit = 5e-2 if method == "int8-static" else 1e-5
        assert distance(found.reshape(wanted.shape), wanted) < limit


def test_compressed_weights_stay_compressed_in_the_file(tmp_path: Path) -> None:
    sizes = {
        method: compile_encoder(tmp_path, "x86_64", method=method).footprint.weights
        for method in ("float32", "float16", "int8-weights")
    }
    # The table alone is 512,000 bytes in float32; in int8-weights the kit leaves it as it is.
    assert sizes["float16"] < 0.55 * sizes["float32"]
    assert sizes["int8-weights"] < 512_000 + 0.4 * (sizes["float32"] - 512_000)


def test_the_table_is_marked_and_its_touched_pages_are_predicted(tmp_path: Path) -> None:
    guessed = compile_encoder(tmp_path, "x86_64")
    records = read_index(guessed.path / WEIGHTS)
    assert [record.shape for record in records if record.random] == [(2000, 64)]
    plain = sum(record.size for record in records if not record.random)
    assert guessed.footprint.weights_resident >= plain + 12 * 4096
    samples = {"input_ids": np.zeros((3, 1, 12), np.int64)}
    exact = compile_encoder(tmp_path, "x86_64", token_samples=samples)
    assert exact.digest != guessed.digest  # the footprint is part of the manifest
    assert exact.footprint.weights_resident - 4096 - plain < 3 * 4096


def test_the_predicted_peak_is_what_the_program_reaches(tmp_path: Path) -> None:
    feeds = draw_tokens(0)
    samples = {"input_ids": feeds["input_ids"][None]}
    bundle = compile_encoder(tmp_path, "x86_64", token_samples=samples, threads=2)
    _, report = run_program(bundle, feeds, tmp_path)
    assert abs(bundle.footprint.peak - report["memory"]["peak"]) < 0.15 * report["memory"]["peak"]


def test_many_runs_take_the_memory_of_one(tmp_path: Path) -> None:
    large = [1, 4_000_000]
    graph = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, large)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, large)],
    )
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    target = make_target("x86_64")
    bundle = compile_model(
        graphs.describe(path), target, directory=tmp_path / "bundle", cache=cache_folder()
    )
    feeds = {"x": np.zeros(large, np.float32)}
    _, report = run_program(bundle, feeds, tmp_path, iterations=3)
    assert abs(bundle.footprint.peak - report["memory"]["peak"]) < 0.1 * report["memory"]["peak"]


def test_a_bundle_lists_its_files_and_its_digest_is_its_manifests(tmp_path: Path) -> None:
    bundle = compile_encoder(tmp_path, "x86_64")
    manifest = (bundle.path / MANIFEST).read_bytes()
    assert bundle.digest == hashlib.sha256(manifest).hexdigest()
    for file in bundle.files:
        data = (bundle.path / file.name).read_bytes()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert bundle.footprint.flash == len(manifest) + sum(file.size for file in bundle.files)
    assert json.loads(manifest)["footprint"]["flash"] == bundle.footprint.flash - len(manifest)
    assert {"avx2", "fma", "f16c"} <= set(bundle.features)


_AGAIN = """
import sys
from pathlib import Path
from tests.host.test_compile import compile_encoder
print(compile_encoder(Path(sys.argv[1]), sys.argv[2], method="float16", static=True).digest)
"""


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_same_model_gives_the_same_bytes_in_another_process(
    machine: str, tmp_path: Path
) -> None:
    digests = set()
    for seed in ("1", "2"):
        folder = tmp_path / f"elsewhere{seed * int(seed)}"
        folder.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", _AGAIN, str(folder), machine],
            capture_output=True,
            check=True,
            env=environment,
        )
        digests.add(done.stdout.split()[-1])
    assert len(digests) == 1


def test_operators_without_a_kernel_are_named_with_counts_before_anything_slow(
    tmp_path: Path,
) -> None:
    nodes = [
        helper.make_node("Det", ["x"], ["d"], name="first"),
        helper.make_node("Det", ["x"], ["e"], name="second"),
        helper.make_node("Own", ["x"], ["f"], name="third", domain="com.example"),
    ]
    x = helper.make_tensor_value_info("x", 1, (3, 3))
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("d", 1, ())])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(OperatorUnsupported) as caught:
        check_operators(path)
    assert caught.value.exit_code == 9
    assert caught.value.why == "Det x2 (first, second); com.example.Own x1 (third)"
    with pytest.raises(OperatorUnsupported):
        compile_model(describe(path), make_target("x86_64"), directory=tmp_path, cache=tmp_path)


def test_what_is_listed_as_known_is_what_has_a_converter() -> None:
    assert KNOWN == CONVERTED
    assert KNOWN_MICROSOFT == CONVERTED_MICROSOFT


def test_operators_are_checked_without_importing_the_compiler(tmp_path: Path) -> None:
    path = save_encoder(tmp_path / "m.onnx")
    code = (
        "import sys; from pathlib import Path; from edgeopt.model.operators import check_operators;"
        f"check_operators(Path({str(path)!r})); print({{'tvm', 'torch'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, text=True, capture_output=True)
    assert done.stdout.strip() == "set()"


def test_an_encoder_has_only_operators_that_compile(tmp_path: Path) -> None:
    check_operators(save_encoder(tmp_path / "m.onnx"))
