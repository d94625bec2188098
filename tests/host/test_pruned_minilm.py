"""Heads and neurons of the published MiniLM: found, cut, and run by onnxruntime."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.artifact import Plan
from edgeopt.compress import apply_plan
from edgeopt.compress.cuts import groups_by_name
from edgeopt.cut import Cut
from edgeopt.errors import ConfigError
from edgeopt.example.layout import published_weights
from edgeopt.model.oracle import run_model, seeded_inputs
from tests.bench.nets import minilm
from tests.compress.test_groups import masked
from tests.graphs import describe

pytestmark = pytest.mark.host


def test_half_of_every_layer_is_cut_and_the_rest_is_what_zeros_leave(tmp_path: Path) -> None:
    try:
        published_weights()
    except ConfigError as error:
        pytest.skip(f"the example's packages are absent; run: {error.fix}")
    loaded = onnx.shape_inference.infer_shapes(minilm(16))
    path = tmp_path / "minilm.onnx"
    onnx.save(loaded, path)
    model = describe(path)
    groups = groups_by_name(loaded)
    assert [(each.kind, each.units) for each in groups.values()] == [
        ("heads", 12),
        ("neurons", 1536),
    ] * 6
    cuts = {
        name: Cut(group=name, kept=tuple(range(1, group.units, 2)))
        for name, group in groups.items()
    }
    plan = Plan(name="half", choices=(), cuts=tuple(cuts.values()))
    made = apply_plan(model, plan, directory=tmp_path / "out")
    onnx.save(masked(loaded, cuts, groups), tmp_path / "masked.onnx")
    feeds = seeded_inputs(model, 0)
    wanted, got = run_model(tmp_path / "masked.onnx", feeds)[0], run_model(made, feeds)[0]
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    # Of 22.7 million values 11.9 are in tables, and half of all others are gone.
    assert made.path.stat().st_size < 0.78 * path.stat().st_size
