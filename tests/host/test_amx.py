"""Products of codes by tile registers (AMX), where this machine has them; refusals everywhere."""

import ctypes
import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgeopt.artifact import Bundle, Model, TensorSpec
from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.compile.build import LIBRARY, PROGRAM, WEIGHTS, plan_module
from edgeopt.compile.cpu import describe_cpu
from edgeopt.compile.import_onnx import import_model
from edgeopt.compile.in_process import open_machine
from edgeopt.compile.kernels.amx_tile import PREFIX
from edgeopt.compile.lower import lower_module
from edgeopt.runner.instructions import used_features
from tests.compile.kit import Array, Graph, make_target
from tests.host.test_compile import run_program

pytestmark = pytest.mark.host

FEATURES = ("avx512f", "avx512_vnni", "amx_tile", "amx_int8")
needs_amx = pytest.mark.skipif(
    "amx_int8" not in Path("/proc/cpuinfo").read_text(), reason="this machine has no AMX"
)


def save_product(path: Path, shape: tuple[int, ...], columns: int, kind: str) -> Array:
    """Write MatMulInteger with a zero point of 3; return its matrix, all int8 values among it."""
    graph = Graph(sum(shape) + columns)
    element = TensorProto.UINT8 if kind == "uint8" else TensorProto.INT8
    x = graph.input("x", shape, element)
    weight: Array = graph.random.integers(-128, 128, (shape[-1], columns)).astype(np.int8)
    zero = graph.constant(np.dtype(kind).type(3))
    product = graph.add("MatMulInteger", x, graph.constant(weight), zero)
    graph.output(product, (*shape[:-1], columns), TensorProto.INT32)
    graph.save(path)
    return weight


def draw_codes(shape: tuple[int, ...], kind: str) -> Array:
    info = np.iinfo(kind)
    return np.random.default_rng(1).integers(info.min, info.max + 1, shape).astype(kind)


@needs_amx
@given(
    lead=st.sampled_from([(), (1,), (3,)]),
    rows=st.integers(4, 140),
    depth=st.integers(1, 200),
    columns=st.integers(1, 100),
    kind=st.sampled_from(["int8", "uint8"]),
)
@example(lead=(1,), rows=128, depth=384, columns=96, kind="uint8")
@example(lead=(), rows=16, depth=64, columns=64, kind="int8")
@example(lead=(2,), rows=197, depth=65, columns=10, kind="uint8")
@settings(max_examples=12, deadline=None)
def test_sums_of_codes_are_those_of_numpy(
    tmp_path_factory: pytest.TempPathFactory,
    lead: tuple[int, ...],
    rows: int,
    depth: int,
    columns: int,
    kind: str,
) -> None:
    path = tmp_path_factory.mktemp("amx") / "m.onnx"
    shape = (*lead, rows, depth)
    weight = save_product(path, shape, columns, kind)
    cpu = describe_cpu(make_target("x86_64", features=FEATURES))
    lowered = lower_module(import_model(path), cpu)
    assert lowered.refusals == ()
    assert PREFIX in lowered.module.script(show_meta=False)
    codes = draw_codes(shape, kind)
    found = open_machine(plan_module(lowered.module, cpu), cpu)["main"](tvm.runtime.tensor(codes))
    wanted = (codes.astype(np.int32) - 3) @ weight.astype(np.int32)
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_few_rows_and_cpus_without_take_other_instructions(tmp_path: Path) -> None:
    save_product(tmp_path / "row.onnx", (1, 64), 32, "uint8")
    save_product(tmp_path / "rows.onnx", (32, 64), 32, "uint8")
    for name, features in (("row", FEATURES), ("rows", FEATURES[:2])):
        cpu = describe_cpu(make_target("x86_64", features=features))
        lowered = lower_module(import_model(tmp_path / f"{name}.onnx"), cpu)
        assert lowered.refusals == ()
        text = lowered.module.script(show_meta=False)
        assert PREFIX not in text
        assert "vpdpbusd" in text


def compile_product(folder: Path) -> Bundle:
    save_product(folder / "m.onnx", (70, 100), 40, "uint8")
    model = Model(
        path=folder / "m.onnx",
        sha256=hashlib.sha256((folder / "m.onnx").read_bytes()).hexdigest(),
        inputs=(TensorSpec(name="x", dtype="uint8", shape=(70, 100)),),
        outputs=(TensorSpec(name="y", dtype="int32", shape=(70, 40)),),
        parameters=4000,
        provenance=("test",),
    )
    target = make_target("x86_64", features=FEATURES)
    return compile_model(model, target, directory=folder / "bundle", cache=cache_folder())


def test_a_bundle_says_that_it_needs_tile_registers_and_so_does_its_code(tmp_path: Path) -> None:
    bundle = compile_product(tmp_path)
    assert {"amx_tile", "amx_int8"} <= set(bundle.features)
    assert {"amx_tile", "amx_int8"} <= set(used_features(bundle.path / LIBRARY))
    assert not {"amx_tile", "amx_int8"} & set(used_features(bundle.path / PROGRAM))


@needs_amx
def test_the_device_program_asks_for_tile_registers_for_all_its_threads(tmp_path: Path) -> None:
    bundle = compile_product(tmp_path)
    codes = draw_codes((70, 100), "uint8")
    found, _ = run_program(bundle, {"x": codes}, tmp_path, iterations=3)
    weight = save_product(tmp_path / "again.onnx", (70, 100), 40, "uint8")
    wanted = (codes.astype(np.int32) - 3) @ weight.astype(np.int32)
    np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)


#: A seccomp filter (Linux: uapi/linux/filter.h, seccomp.h): arch_prctl's request, 0x1023, fails
#: with EINVAL as in kernels before 5.16; everything else passes.
_FILTER = [
    (0x20, 0, 0, 0),
    (0x15, 0, 3, 158),
    (0x20, 0, 0, 16),
    (0x15, 0, 1, 0x1023),
    (0x06, 0, 0, 0x00050016),
    (0x06, 0, 0, 0x7FFF0000),
]


def refuse_tiles() -> None:
    """Make the kernel refuse tile registers to this process and to what it starts."""
    code = b"".join(struct.pack("HBBI", *each) for each in _FILTER)
    kept = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(_FILTER), ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.create_string_buffer(program)) == 0


def run_refused(*command: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", _REFUSED, *map(str, command)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)


_REFUSED = (
    "import os, sys; from tests.host.test_amx import refuse_tiles; refuse_tiles(); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_a_kernel_that_refuses_tile_registers_is_named(tmp_path: Path) -> None:
    bundle = compile_product(tmp_path)
    np.save(tmp_path / "x.npy", draw_codes((70, 100), "uint8"))
    done = run_refused(
        *(bundle.path / PROGRAM, "--model", bundle.path / LIBRARY),
        *("--weights", bundle.path / WEIGHTS, "--input", tmp_path / "x.npy"),
    )
    assert done.returncode == 1
    assert "tile registers (AMX) that it uses: Invalid argument" in json.loads(done.stderr)["error"]
    ask = "from edgeopt.compile.in_process import allow_tiles; allow_tiles()"
    done = run_refused(sys.executable, "-c", ask)
    assert done.returncode == 1
    assert "does not give tile registers (AMX)" in done.stderr
    assert "Invalid argument" in done.stderr


def test_a_model_without_asks_for_nothing(tmp_path: Path) -> None:
    save_product(tmp_path / "m.onnx", (70, 100), 40, "uint8")
    model = Model(
        path=tmp_path / "m.onnx",
        sha256="0" * 64,
        inputs=(TensorSpec(name="x", dtype="uint8", shape=(70, 100)),),
        outputs=(TensorSpec(name="y", dtype="int32", shape=(70, 40)),),
        parameters=4000,
        provenance=("test",),
    )
    target = make_target("x86_64")
    bundle = compile_model(model, target, directory=tmp_path / "out", cache=cache_folder())
    np.save(tmp_path / "x.npy", draw_codes((70, 100), "uint8"))
    done = run_refused(
        *(bundle.path / PROGRAM, "--model", bundle.path / LIBRARY),
        *("--weights", bundle.path / WEIGHTS, "--input", tmp_path / "x.npy"),
    )
    assert done.returncode == 0, done.stderr
