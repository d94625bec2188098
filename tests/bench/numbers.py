"""What each way to write numbers in few bits loses of a model's matrices.

    python -m tests.bench.numbers MODEL.onnx [--every 7]

Of every so many-th of the large matrices: the sum of squared errors as a share of the sum of
squares, and the bits of a value as stored, with scales, zero points and codebooks. No samples are
used, and nothing is rounded but to the nearest.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import numpy_helper

from edgeopt.artifact import Choice, Plan
from edgeopt.choice import Numbers
from edgeopt.compress import apply_plan
from edgeopt.compress.cost import stored_bytes
from edgeopt.compress.decode import decode_choice
from edgeopt.model.graph import initializers, weights
from edgeopt.model.oracle import Array
from tests.bench.prepare import print_table
from tests.graphs import describe, save_graph

#: Values of the smallest matrix that counts.
_SMALLEST = 100_000


def forms() -> Iterator[Choice]:
    """List what is compared, by bits."""
    for granularity in ("channel", "tensor"):
        for zeros in (False, True):
            for powers in (False, True):
                numbers = {
                    "granularity": granularity,
                    "zero_points": zeros,
                    "power_of_two": powers,
                }
                yield Choice(
                    weight="w", method="int8-weights", numbers=Numbers.model_validate(numbers)
                )
    for block in (32, 128):
        for zeros in (False, True):
            numbers_of = Numbers(zero_points=zeros)
            yield Choice(weight="w", method="int8-blocks", block=block, numbers=numbers_of)
        yield Choice(weight="w", method="int4-blocks", block=block)
        yield Choice(
            weight="w", method="int4-blocks", block=block, numbers=Numbers(power_of_two=True)
        )
        yield Choice(weight="w", method="codebook16-blocks", block=block)
        piecewise = Numbers(levels="piecewise")
        yield Choice(weight="w", method="codebook16-blocks", block=block, numbers=piecewise)
    for entries in (256, 16, 4):
        for channels in (None, 96):
            yield Choice(weight="w", method="codebook-weights", entries=entries, channels=channels)


def matrices(path: Path, every: int) -> list[Array]:
    """Read every so many-th large matrix of a model, as [K, N]."""
    graph = onnx.load(path).graph
    stored = initializers(graph)
    found = [
        each
        for each in weights(graph)
        if each.role in ("matmul", "gemm") and each.size >= _SMALLEST
    ][::every]
    return [
        np.ascontiguousarray(values if each.axis == 1 else values.T)
        for each in found
        for values in (numpy_helper.to_array(stored[each.name]),)
    ]


def lose(values: Array, choice: Choice, folder: Path) -> tuple[float, int]:
    """Return the sum of squared errors of a form, and its bytes."""
    depth, width = values.shape
    text = f"g (float[1,{depth}] x) => (float[1,{width}] y) {{ y = MatMul(x, w) }}"
    model = describe(save_graph(folder / "matrix.onnx", text, {"w": values}))
    made = onnx.load(apply_plan(model, Plan(name="x", choices=(choice,)), directory=folder).path)
    known = {each.name: each for each in weights(onnx.load(model.path).graph)}
    decoded = decode_choice(known["w"], made, choice)
    assert decoded is not None
    lost = float(np.square(values.astype(np.float64) - decoded).sum())
    return lost, sum(map(stored_bytes, made.graph.initializer))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--every", type=int, default=7)
    options = parser.parse_args()
    found = matrices(options.model, options.every)
    squares = sum(float(np.square(each.astype(np.float64)).sum()) for each in found)
    count = sum(each.size for each in found)
    rows = [("form", "bits", "lost")]
    with TemporaryDirectory(prefix="edgeopt-numbers-") as folder:
        for choice in forms():
            parts = [lose(each, choice, Path(folder)) for each in found]
            lost, size = (sum(column) for column in zip(*parts, strict=True))
            rows.append((choice.title, f"{8 * size / count:.3f}", f"{lost / squares:.3e}"))
    print(f"{len(found)} matrices of {options.model.name}")
    print_table(rows)


if __name__ == "__main__":
    main()
