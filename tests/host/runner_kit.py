"""A small model for the device program: lookup, matrix product, two outputs."""

import platform
import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeopt.compile.plan_memory import add_forget
from edgeopt.compile.weights import write_weights
from edgeopt.runner import Machine, build_program, link_model

ROWS, WIDTH, CLASSES, TOKENS = 1000, 16, 8, 4
TARGETS: Mapping[Machine, dict[str, Any]] = {
    "x86_64": {"kind": "llvm", "mtriple": "x86_64-linux-gnu"},
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a53"},
    "arm": {
        "kind": "llvm",
        "mtriple": "armv7a-linux-gnueabihf",
        "mcpu": "cortex-a7",
        "mattr": ["+neon", "+vfp4"],
        "mfloat-abi": "hard",
    },
}


@dataclass(frozen=True)
class Built:
    """A program with a model, and what the model computes."""

    command: tuple[str, ...]
    folder: Path
    table: NDArray[np.float32]
    dense: NDArray[np.float32]

    def run(self, *options: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*self.command, *map(str, options)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def expect(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rows = self.table[ids]
        return np.exp(rows @ self.dense), rows.sum(axis=-2)


def model_objects(
    machine: Machine, folder: Path, *, rows: int, width: int, tokens: int, system: bool
) -> list[Path]:
    """Compile exp(table[ids] @ dense) and table[ids].sum(0), with the weights as parameters."""
    relax = import_relax()
    ids = relax.Var("ids", relax.TensorType((tokens,), "int64"))
    table = relax.Var("table", relax.TensorType((rows, width), "float32"))
    dense = relax.Var("dense", relax.TensorType((width, CLASSES), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [ids, table, dense]):
        with builder.dataflow():
            taken = builder.emit(relax.op.take(table, ids, axis=0))
            scores = builder.emit(relax.op.exp(relax.op.matmul(taken, dense)))
            first = builder.emit_output(scores)
            second = builder.emit_output(relax.op.sum(taken, axis=[0]))
        builder.emit_func_output(relax.Tuple([first, second]))
    return keep_objects(builder.get(), machine, folder, system=system)


def transposer(folder: Path, types: Sequence[str]) -> list[Path]:
    """Compile a model that transposes one 3x5 matrix of each element type."""
    relax = import_relax()
    inputs = [relax.Var(f"x{i}", relax.TensorType((3, 5), name)) for i, name in enumerate(types)]
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            turned = [builder.emit_output(relax.op.permute_dims(each)) for each in inputs]
        builder.emit_func_output(relax.Tuple(turned))
    return keep_objects(builder.get(), "x86_64", folder, system=False)


def import_relax() -> Any:
    """Import TVM, whose own modules warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tvm import relax
    return relax


def keep_objects(module: Any, machine: Machine, folder: Path, *, system: bool) -> list[Path]:
    """Compile with TVM's default pipeline and keep the objects that it would link."""
    import tvm

    relax = import_relax()

    def keep(_: str, objects: list[str], options: object = None) -> None:
        for index, path in enumerate(objects):
            shutil.copy(path, folder / f"{index}.o")

    target = tvm.target.Target(TARGETS[machine])
    with target:
        pipeline = relax.get_default_pipeline(target)
        built = relax.build(add_forget(module), target, relax_pipeline=pipeline, system_lib=system)
    built.export_library(str(folder / "model.so"), fcompile=keep)
    return sorted(folder.glob("*.o"))


def native_program(cache: Path) -> Path:
    """Build the dynamic program; in the user's own cache, a deploy may have built it already."""
    if platform.machine() != "x86_64":
        pytest.skip("the dynamic program is run on x86-64 hosts only")
    return build_program("x86_64", "dynamic", cache=cache)


def build_native(cache: Path, folder: Path) -> Built:
    """Build the program and the lookup model for this machine."""
    program = native_program(cache)
    objects = model_objects("x86_64", folder, rows=ROWS, width=WIDTH, tokens=TOKENS, system=False)
    link_model(objects, "x86_64", folder / "model.so", cache=cache)
    table, dense = draw_weights(folder)
    return Built((str(program), "--model", str(folder / "model.so")), folder, table, dense)


def draw_weights(
    folder: Path, *, rows: int = ROWS, width: int = WIDTH
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(7)
    table = random.standard_normal((rows, width), dtype=np.float32)
    dense = random.standard_normal((width, CLASSES), dtype=np.float32) / np.float32(width)
    write_weights(folder / "weights.bin", [table, dense], random=frozenset({0}))
    return table, dense


def save_samples(path: Path, seed: int, count: int = 3) -> NDArray[np.int64]:
    ids = np.random.default_rng(seed).integers(0, ROWS, (count, TOKENS), dtype=np.int64)
    np.save(path, ids)
    return ids
