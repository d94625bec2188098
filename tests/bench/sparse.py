"""Time of products without blocks of zeros against our own dense float32 kernel, on this machine.

    python -m tests.bench.sparse [--depth 384] [--columns 1536] [--repeats 40]

One thread, calls of both interleaved, the shortest of each: a ratio below 1 is faster than float32
with its zeros. Blocks are set to zero at random, so many in each matrix; bytes are what is pushed.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tvm
from tvm import relax

from edgeopt.artifact import Choice, Method, Plan
from edgeopt.compile.build import build_executable, plan_module
from edgeopt.compile.cpu import describe_cpu
from edgeopt.compile.lift import lift_constants
from edgeopt.compress import apply_plan
from edgeopt.compress.sparse import SPARSE, WIDTHS
from edgeopt.report import format_columns
from tests.compile.kit import lower_natively, make_target
from tests.graphs import describe, normal, save_graph

ROWS = (1, 32, 128)
SHARES = (0.5, 0.75, 0.9)
#: Multiplications of the calls that are timed as one.
_TIMED = 2e8


def draw_matrix(depth: int, columns: int, *, width: int, share: float) -> np.ndarray:
    """Draw a matrix of which a share of the blocks of so many columns is zero."""
    values = normal(0, depth * columns // width, width)
    order = np.random.default_rng(0).permutation(len(values))
    values[order[: int(share * len(values))]] = 0
    return values.reshape(depth, columns)


def build(
    folder: Path, rows: int, weight: np.ndarray, choice: Choice
) -> tuple[Callable[[], object], int]:
    """Compile a product for this machine; returns what runs it, and the bytes of its constants."""
    depth, columns = weight.shape
    text = f"g (float[{rows},{depth}] x) => (float[{rows},{columns}] y) {{ y = MatMul(x, w) }}"
    model = describe(save_graph(folder / "m.onnx", text, {"w": weight}))
    made = apply_plan(model, Plan(name="bench", choices=(choice,)), directory=folder / "out")
    cpu = describe_cpu(make_target("x86_64"))
    module, refusals = lower_natively(made.path, cpu)
    assert refusals == ()
    size = sum(each.nbytes for each in lift_constants(module).arrays)
    machine = relax.VirtualMachine(build_executable(plan_module(module, cpu), cpu), tvm.cpu())
    main, x = machine["main"], tvm.runtime.tensor(normal(1, rows, depth))
    return lambda: main(x), size


def measure(
    calls: dict[str, Callable[[], object]], *, inner: int, repeats: int
) -> dict[str, float]:
    """Return the seconds of the shortest call of each, interleaved."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(inner):
                call()
            best[name] = min(best[name], (time.perf_counter() - start) / inner)
    return best


def table_of_ratios(depth: int, columns: int, repeats: int) -> Iterator[tuple[str, ...]]:
    """Give a row for each method and width: bytes and time at each share, by rows of A."""
    shares = [f"{share:.0%}" for share in SHARES]
    yield ("method", "columns", *(f"bytes {each}" for each in shares),
           *(f"{rows}x {each}" for rows in ROWS for each in shares))  # fmt: skip
    forms: list[tuple[Method, int]] = [(method, width) for method in SPARSE for width in WIDTHS]
    sizes: dict[tuple[object, ...], int] = {}
    times: dict[tuple[object, ...], float] = {}
    for rows in ROWS:
        calls: dict[str, Callable[[], object]] = {}
        named: dict[str, tuple[object, ...]] = {}
        with TemporaryDirectory(prefix="edgeopt-sparse-") as name:
            folder = Path(name)
            whole = draw_matrix(depth, columns, width=16, share=0.0)
            plain = Choice(weight="w", method="float32")
            calls["dense"], dense = build(folder, rows, whole, plain)
            for method, width in forms:
                choice = Choice(weight="w", method=method, width=width)
                for share in SHARES:
                    weight = draw_matrix(depth, columns, width=width, share=share)
                    key = f"{method} {width} {share}"
                    named[key] = (method, width, share)
                    calls[key], sizes[named[key]] = build(folder, rows, weight, choice)
        inner = max(1, int(_TIMED / (rows * depth * columns) / 20))
        found = measure(calls, inner=inner, repeats=repeats)
        times |= {(*named[key], rows): found[key] / found["dense"] for key in named}
    for method, width in forms:
        yield (
            method,
            str(width),
            *(f"{sizes[method, width, share] / dense:.2f}" for share in SHARES),
            *(f"{times[method, width, share, rows]:.2f}" for rows in ROWS for share in SHARES),
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=384)
    parser.add_argument("--columns", type=int, default=1536)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = "1"
    rows = list(table_of_ratios(options.depth, options.columns, options.repeats))
    print(format_columns(rows, indent=""))


if __name__ == "__main__":
    main()
