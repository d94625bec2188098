"""Zeros that save nothing are found, with what they would take if they were stored sparse."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compress.sparsity import find_dead, measure_sparse
from edgeopt.model.graph import initializers
from edgeopt.model.oracle import Array
from tests.graphs import describe, normal, text_model


def pruned(folder: Path, share: float) -> Model:
    """Set the smallest values of one matrix to zero, as other tools prune."""
    loaded = onnx.load(text_model(folder).path)
    tensor = initializers(loaded.graph)["mix"]
    values = numpy_helper.to_array(tensor).copy()
    values[np.abs(values) < np.quantile(np.abs(values), share)] = 0
    tensor.CopyFrom(numpy_helper.from_array(values, "mix"))
    onnx.save(loaded, folder / "pruned.onnx")
    return describe(folder / "pruned.onnx")


def test_sizes_are_those_of_storing_it_so() -> None:
    values = normal(0, 24, 40)
    values[np.abs(values) < 0.9] = 0
    kept = values != 0
    found = measure_sparse(kept, 32)
    # The reference: the arrays themselves.
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.uint32)
    columns = np.nonzero(kept)[1].astype(np.uint8)
    assert found.csr == values[kept].nbytes + columns.nbytes + starts.nbytes
    assert found.bitmap == values[kept].nbytes + np.packbits(kept).nbytes
    blocks = values.reshape(-1, 4)
    used = blocks.any(axis=1)
    assert found.blocks == blocks[used].nbytes + np.packbits(used).nbytes
    assert found.dense == values.nbytes
    assert found.two_of_four is None


def test_two_of_four_are_known_where_it_holds() -> None:
    values: Array = normal(0, 8, 16).reshape(-1, 4)
    order = np.argsort(np.abs(values), axis=1)
    np.put_along_axis(values, order[:, :2], 0, axis=1)
    found = measure_sparse(values.reshape(8, 16) != 0, 8)
    assert found.two_of_four == 64 + 64 * 2 // 8
    values[0, :3] = 1
    assert measure_sparse(values.reshape(8, 16) != 0, 8).two_of_four is None


def test_in_few_bits_places_take_more_than_the_zeros_did() -> None:
    kept = normal(0, 256, 384) > 0
    assert measure_sparse(kept, 32).least < measure_sparse(kept, 32).dense
    narrow = measure_sparse(kept, 2)
    assert narrow.least > 0.95 * narrow.dense
    assert narrow.csr > 4 * narrow.dense


def test_a_model_that_was_pruned_is_told_and_another_is_not(tmp_path: Path) -> None:
    plain = Plan(name="float32", choices=())
    assert find_dead(text_model(tmp_path), plain) == ()
    assert find_dead(pruned(tmp_path, 0.1), plain) == ()
    model = pruned(tmp_path, 0.7)
    (found,) = find_dead(model, plain)
    assert (found.weight, found.sizes.dense) == ("mix", 32 * 64 * 4)
    assert found.zeros == pytest.approx(0.7, abs=0.01)
    coded = Plan(name="x", choices=(Choice(weight="mix", method="int8-weights"),))
    assert find_dead(model, coded)[0].sizes.dense == 32 * 64
    # Factors have values of their own.
    low = Choice(weight="mix", method="int8-weights", rank=16)
    assert find_dead(model, Plan(name="x", choices=(low,))) == ()
