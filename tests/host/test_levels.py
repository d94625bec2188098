"""Levels of 4-bit codes are found in registers, wherever words and vectors are whole."""

from pathlib import Path

import pytest

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compile.cpu import describe_cpu
from edgeopt.compress import apply_plan
from edgeopt.model.oracle import run_model, seeded_inputs
from tests.compile.kit import distance, lower_natively, make_target, run_lowered
from tests.graphs import describe, normal, save_graph

pytestmark = pytest.mark.host

#: Rows, K and columns of a product, and columns of a group of levels; None: there is one group.
SHAPES = {
    "one row": (1, 256, 192, None),
    "one row, whose last word is not whole": (1, 100, 192, None),
    "few rows": (3, 256, 192, None),
    "many rows and ragged columns": (33, 128, 75, None),
    "groups of panels": (33, 128, 768, 384),
    "groups of one row": (1, 128, 768, 384),
}
#: In these each level is chosen by the bits of its code.
CHOSEN = {
    "many rows, whose last word is not whole": (33, 100, 192, None),
    "groups within panels": (33, 128, 96, 12),
}


def compress(folder: Path, rows: int, depth: int, columns: int, channels: int | None) -> Model:
    text = f"m (float[{rows},{depth}] x) => (float[{rows},{columns}] y) {{ y = MatMul(x, w) }}"
    model = describe(save_graph(folder / "m.onnx", text, {"w": normal(0, depth, columns) / 16}))
    choice = Choice(weight="w", method="codebook-weights", entries=16, channels=channels)
    return apply_plan(model, Plan(name="p", choices=(choice,)), directory=folder / "out")


@pytest.mark.parametrize("features", [(), ("avx512f",)], ids=["avx2", "avx512"])
@pytest.mark.parametrize("shape", SHAPES | CHOSEN)
def test_levels_of_any_product_are_those_of_onnxruntime(
    shape: str, features: tuple[str, ...], tmp_path: Path
) -> None:
    if not set(features) <= set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip(f"this machine has no {' '.join(features)}")
    cpu = describe_cpu(make_target("x86_64", features=features))
    made = compress(tmp_path, *(SHAPES | CHOSEN)[shape])
    for seed in range(3):
        feeds = seeded_inputs(made, seed)
        found, wanted = run_lowered(made.path, feeds, cpu)[0][0], run_model(made, feeds)[0]
        assert distance(found, wanted) < 2e-6


@pytest.mark.parametrize("machine", ["aarch64", "x86_64", "arm"])
@pytest.mark.parametrize("shape", SHAPES | CHOSEN)
def test_they_are_looked_up_where_words_and_vectors_are_whole(
    shape: str, machine: str, tmp_path: Path
) -> None:
    made = compress(tmp_path, *(SHAPES | CHOSEN)[shape])
    module, refusals = lower_natively(made.path, describe_cpu(make_target(machine)))
    assert refusals == ()
    assert ("edgeopt_levels" in module.script()) == (machine != "arm" and shape in SHAPES)
