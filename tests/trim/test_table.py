from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from edgeopt.artifact import Model
from edgeopt.errors import ModelError
from edgeopt.model.oracle import run_model
from edgeopt.trim.table import trim_tables
from tests.graphs import describe, normal, save_graph, text_model

KEPT = (0, 1, 5, 9, 20, 21)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_outputs_on_renumbered_ids_are_the_same_to_the_bit(tmp_path: Path, seed: int) -> None:
    model = text_model(tmp_path, seed=seed)
    made = trim_tables(model, "input_ids", KEPT, directory=tmp_path / "trim")
    new = np.random.default_rng(seed).integers(0, len(KEPT), (1, 8))
    mask = np.ones((1, 8), np.int64)
    old = {"input_ids": np.array(KEPT)[new], "attention_mask": mask}
    (before,) = run_model(model, old)
    (after,) = run_model(made, {**old, "input_ids": new})
    assert before.tobytes() == after.tobytes()
    # The old ids mean other rows now, where they mean any.
    (other,) = run_model(made, {**old, "input_ids": (new + 1) % len(KEPT)})
    assert other.tobytes() != after.tobytes()


def test_the_file_is_smaller_by_the_rows_left_out(tmp_path: Path) -> None:
    model = text_model(tmp_path)
    made = trim_tables(model, "input_ids", KEPT, directory=tmp_path / "trim")
    assert model.parameters - made.parameters == (500 - len(KEPT)) * 32
    assert made.provenance[-1] == "trimmed"
    assert (made.inputs, made.outputs) == (model.inputs, model.outputs)


def graph(folder: Path, nodes: str, outputs: str = "float[4,2] y") -> Model:
    stored: dict[str, npt.NDArray[Any]] = {
        "table": normal(0, 30, 2),
        "half": normal(1, 30, 2).astype(np.float16),
        "row": np.array([[1]]),
        "padding": np.array(1),
        "late": np.array(5),
    }
    text = f"g (int64[1,4] ids) => ({outputs}) {{ {nodes} }}"
    return describe(save_graph(folder / "m.onnx", text, stored))


def trimmed_rows(model: Model, folder: Path) -> dict[str, int]:
    made = trim_tables(model, "ids", KEPT, directory=folder / "trim")
    stored = onnx.load(made.path).graph.initializer
    return {each.name: len(numpy_helper.to_array(each)) for each in stored if each.dims}


def test_tables_are_found_behind_views_and_casts(tmp_path: Path) -> None:
    nodes = """narrow = Cast<to=6>(ids)  flat = Squeeze(narrow)  a = Gather(table, flat)
    wide = Cast<to=1>(half)  b = Gather(wide, flat)  y = Add(a, b)"""
    rows = trimmed_rows(graph(tmp_path, nodes), tmp_path)
    assert rows["table"] == rows["half"] == len(KEPT)


LOOKUP = "flat = Squeeze(ids)  y = Gather(table, flat)"


@pytest.mark.parametrize(
    ("nodes", "outputs", "why"),
    [
        (f"{LOOKUP}  z = MatMul(y, across)  across = Transpose(table)", "float[4,30] z", "tied"),
        (f"{LOOKUP}  z = Add(ids, row)", "int64[1,4] z", "computes with the token ids"),
        (f"{LOOKUP}  z = Equal(ids, late)", "bool[1,4] z", "computes with the token ids"),
        (f"{LOOKUP}  z = Identity(ids)", "int64[1,4] z", "hands its token ids on"),
        ("z = Cast<to=1>(ids)", "float[1,4] z", "hands its token ids on"),
        ("t = Mul(table, table)  f = Squeeze(ids)  z = Gather(t, f)", "float[4,2] z", "computed"),
    ],
)
def test_ids_or_tables_that_serve_anything_else_are_refused(
    tmp_path: Path, nodes: str, outputs: str, why: str
) -> None:
    if "across" in nodes:
        nodes = f"across = Transpose(table)  {LOOKUP}  z = MatMul(y, across)"
    model = graph(tmp_path, nodes, outputs)
    with pytest.raises(ModelError, match="cannot be trimmed") as caught:
        trim_tables(model, "ids", KEPT, directory=tmp_path / "trim")
    assert why in caught.value.why


def test_a_comparison_with_a_padding_that_keeps_its_number_is_allowed(tmp_path: Path) -> None:
    model = graph(tmp_path, f"{LOOKUP}  z = Equal(ids, padding)", "float[4,2] y, bool[1,4] z")
    assert trimmed_rows(model, tmp_path)["table"] == len(KEPT)


def test_a_table_with_fewer_rows_than_the_tokenizer_has_pieces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        trim_tables(graph(tmp_path, LOOKUP), "ids", (0, 30), directory=tmp_path / "trim")
    assert "has 30 rows" in caught.value.why
