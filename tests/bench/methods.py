"""Which kernel computes with each method's weights on each kind of core, and in how many bits.

    python -m tests.bench.methods

Nothing is looked up: a small matrix and a table are compressed by each method and lowered for the
cores of all targets. Bits are those of the constants that are pushed, scales and levels included.
Of methods that leave out blocks of zeros, half of the matrix is set to zero first.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np

from edgeopt.artifact import Method, Model, Recipe
from edgeopt.choice import Numbers
from edgeopt.compile.cpu import Cpu, describe_cpu
from edgeopt.compile.kernels.rule import RULE, sorted_functions
from edgeopt.compile.lift import lift_constants
from edgeopt.compress import apply_plan, make_plan
from edgeopt.report import format_columns
from edgeopt.sparsify import Sparsify
from edgeopt.target import load_targets
from tests.compile.kit import lower_natively
from tests.graphs import describe, normal, save_graph

#: Rows and columns of the table, and of the matrix that 8 rows are multiplied with.
_ROWS, _DEPTH, _WIDTH = 8192, 256, 384
#: Kinds of kernels that only move numbers or compute on each alone.
_AROUND = {"elementwise", "rows", "columns"}
#: Numbers of a recipe that change what is stored; all others are stored as their method's usual.
VARIANTS: dict[str, tuple[Method, Numbers]] = {
    "int8-blocks+zero_points": ("int8-blocks", Numbers(zero_points=True)),
    "int8-weights+tensor": ("int8-weights", Numbers(granularity="tensor")),
    "int8-weights+zero_points": ("int8-weights", Numbers(zero_points=True)),
}


def cores() -> dict[str, Cpu]:
    """Return one CPU for each kind of core that a target runs models on."""
    found = {each.cluster[0].core: describe_cpu(each) for each in load_targets().values()}
    return dict(sorted(found.items()))


def table_of_methods(cpus: dict[str, Cpu]) -> str:
    """Print the kernel of a product, and the bits of a value of matrices and tables.

    Cores of one machine whose kernels are all the same share a column.
    """
    with TemporaryDirectory(prefix="edgeopt-methods-") as folder:
        forms = {each: (each, Numbers()) for each in get_args(Method)} | VARIANTS
        found = {
            name: list(_cells(*form, cpus, Path(folder) / name)) for name, form in forms.items()
        }
    columns = {
        name: [each[place + 2] for each in found.values()] for place, name in enumerate(cpus)
    }
    shown: dict[str, list[str]] = {}
    for machine in sorted({each.machine for each in cpus.values()}):
        own = {name: columns[name] for name, each in cpus.items() if each.machine == machine}
        alike = len({tuple(each) for each in own.values()}) == 1
        shown |= {machine: next(iter(own.values()))} if alike else own
    rows: list[tuple[str, ...]] = [("method", "matrix", "table", *shown)]
    for place, (name, cells) in enumerate(found.items()):
        rows.append((name, *cells[:2], *(each[place] for each in shown.values())))
    return format_columns(rows, indent="")


def _cells(method: Method, numbers: Numbers, cpus: dict[str, Cpu], folder: Path) -> Iterator[str]:
    """Give the bits of both roles, and the kernel of the product on each core."""
    recipe = Recipe(numbers=numbers)
    matrix, table = (_compressed(each, method, recipe, folder) for each in (_matrix, _table))
    for made, count in ((matrix, _DEPTH * _WIDTH), (table, _ROWS * _DEPTH)):
        module, _ = lower_natively(made.path)
        size = sum(each.nbytes for each in lift_constants(module).arrays)
        yield f"{8 * size / count:.2f}"
    for cpu in cpus.values():
        yield " ".join(_kernels(matrix, cpu))


def _kernels(made: Model, cpu: Cpu) -> list[str]:
    module, refusals = lower_natively(made.path, cpu)
    kinds = {str((function.attrs or {}).get(RULE, "")) for _, function in sorted_functions(module)}
    assert not refusals, refusals
    return sorted(kinds - _AROUND)


def _compressed(
    make: Callable[[Path], Model], method: Method, recipe: Recipe, folder: Path
) -> Model:
    folder.mkdir(exist_ok=True)
    model = make(folder)
    samples = {
        each.name: np.random.default_rng(0).standard_normal((4, *each.shape)).astype(np.float32)
        if each.dtype == "float32"
        else np.random.default_rng(0).integers(0, _ROWS, (4, *each.shape))
        for each in model.inputs
    }
    half = Sparsify(value=0.5)
    plan = make_plan(model, method, samples=samples, directory=folder, recipe=recipe, zeros=half)
    return apply_plan(model, plan, directory=folder / method / model.path.stem)


def _matrix(folder: Path) -> Model:
    text = f"g (float[8,{_DEPTH}] x) => (float[8,{_WIDTH}] y) {{ y = MatMul(x, w) }}"
    weight = normal(0, _DEPTH, _WIDTH) / 16
    return describe(save_graph(folder / "matrix.onnx", text, {"w": weight}))


def _table(folder: Path) -> Model:
    text = f"g (int64[1,8] x) => (float[1,8,{_DEPTH}] y) {{ y = Gather<axis=0>(w, x) }}"
    return describe(save_graph(folder / "table.onnx", text, {"w": normal(0, _ROWS, _DEPTH)}))


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(table_of_methods(cores()))


if __name__ == "__main__":
    main()
