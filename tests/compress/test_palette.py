"""Codebooks of a weight's own, of the whole tensor or of groups of its channels."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pydantic import ValidationError

from edgeopt.artifact import Choice, Plan
from edgeopt.choice import Numbers
from edgeopt.compress import apply_plan, make_plan
from edgeopt.compress.affine import decode_affine, encode_affine
from edgeopt.compress.palette import decode_palette, encode_palette
from edgeopt.errors import ConfigError
from edgeopt.model.oracle import Array, run_samples
from tests.compress.test_plan import draw
from tests.graphs import normal, text_model


def book(entries: int, channels: int | None = None, weight: str = "mix") -> Choice:
    return Choice(weight=weight, method="codebook-weights", entries=entries, channels=channels)


def lost(rows: Array, choice: Choice) -> float:
    values = decode_palette(encode_palette(rows, choice), choice.channels)
    return float(np.square(rows - values.astype(np.float64)).mean())


@pytest.mark.parametrize(
    ("entries", "error"), [(4, 0.1175), (8, 0.03454), (16, 0.009497), (32, 0.002499)]
)
def test_numbers_of_normal_values_are_those_of_max(entries: int, error: float) -> None:
    """Max 1960 (IRE Trans. IT 6), table I: the least squared error of so many levels."""
    assert lost(normal(0, 256, 512), book(entries)) == pytest.approx(error, rel=0.04)


def test_256_numbers_lose_less_than_even_steps_and_as_much_as_theory_says() -> None:
    """Panter and Dite 1951: sqrt(3) pi / (2 n^2) for normal values."""
    rows = normal(1, 256, 512)
    even = np.square(rows - decode_affine(encode_affine(rows, Numbers(granularity="tensor"))))
    found = lost(rows, book(256))
    assert found == pytest.approx(np.sqrt(3) * np.pi / (2 * 256**2), rel=0.1)
    assert found < 0.6 * even.mean()


@pytest.mark.parametrize("channels", [None, 8, 5])
def test_each_value_has_the_nearest_number_of_its_group(channels: int | None) -> None:
    rows = normal(2, 24, 40) * np.linspace(0.1, 3, 24, dtype=np.float32)[:, None]
    choice = book(16, channels)
    palette = encode_palette(rows, choice)
    size = channels or 24
    assert palette.numbers.shape == (-(-24 // size), 16)
    values = decode_palette(palette, channels)
    for row in range(24):
        own = palette.numbers[row // size].astype(np.float64)
        distances = np.abs(rows[row][:, None] - own)
        assert np.abs(values[row] - rows[row]) == pytest.approx(distances.min(axis=1), abs=1e-6)


def test_groups_of_channels_pay_where_channels_differ() -> None:
    rows = normal(3, 24, 200) * np.repeat(np.array([1, 10, 100], np.float32), 8)[:, None]
    relative = [
        np.square((rows - decode_palette(encode_palette(rows, book(16, size)), size)) / scale)
        for size in (None, 8)
        for scale in (np.repeat(np.array([1, 10, 100], np.float32), 8)[:, None],)
    ]
    assert relative[1].mean() < 0.1 * relative[0].mean()


@pytest.mark.parametrize(("entries", "bits"), [(4, 2), (13, 4), (16, 4), (40, 8), (256, 8)])
@pytest.mark.parametrize("channels", [None, 16, 30])
def test_onnxruntime_looks_the_numbers_up(
    tmp_path: Path, entries: int, bits: int, channels: int | None
) -> None:
    model = text_model(tmp_path)
    choices = (book(entries, weight="table"), book(entries, channels))
    plan = Plan(name="x", choices=choices)
    made, again = (
        apply_plan(model, each, directory=tmp_path / name)
        for each, name in (
            (plan, "one"),
            (Plan.model_validate_json(plan.model_dump_json()), "two"),
        )
    )
    assert made.path.read_bytes() == again.path.read_bytes()
    loaded = onnx.load(made.path)
    onnx.checker.check_model(loaded, full_check=True)
    stored = {each.name: numpy_helper.to_array(each) for each in loaded.graph.initializer}
    assert stored[f"mix.uint{bits}"].shape == (32, 64)
    assert stored[f"table.uint{bits}"].dtype.name == f"uint{bits}"
    groups = 1 if channels is None else -(-64 // channels)
    assert stored["mix.codebook"].shape == (groups * entries,)
    # What it stands for, by its meaning: of each column its group's numbers.
    original = onnx.load(model.path)
    for tensor in original.graph.initializer:
        if tensor.name in ("mix", "table"):
            codes = stored[f"{tensor.name}.uint{bits}"].astype(np.int64)
            own = stored[f"{tensor.name}.codebook"].reshape(-1, entries)
            first = np.zeros(codes.shape[1], np.int64)
            if tensor.name == "mix" and channels is not None:
                first = np.arange(64) // channels
            values = own[first[None, :], codes]
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    path = tmp_path / "decoded.onnx"
    onnx.save(original, path)
    feeds = draw(model, 4, 0)
    found, whole = run_samples(made, feeds)[0], run_samples(model, feeds)[0]
    wanted = run_samples(model.model_copy(update={"path": path}), feeds)[0]
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()
    assert np.abs(found - whole).max() > 1e-3 * np.abs(whole).max()


def test_a_plan_by_name_has_256_numbers_for_each_weight(tmp_path: Path) -> None:
    plan = make_plan(text_model(tmp_path), "codebook-weights", directory=tmp_path)
    assert [each.title for each in plan.choices] == ["codebook-weights of 256"] * 2


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "codebook-weights"},
        {"method": "codebook-weights", "entries": 257},
        {"method": "codebook-weights", "entries": 2},
        {"method": "codebook-weights", "entries": 10, "numbers": {"levels": "piecewise"}},
        {"method": "int8-weights", "entries": 16},
        {"method": "int8-weights", "channels": 16},
    ],
    ids=str,
)
def test_a_codebook_that_means_nothing_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Choice.model_validate({"weight": "w", **fields})


def test_a_table_has_one_codebook(tmp_path: Path) -> None:
    plan = Plan(name="x", choices=(book(16, 16, "table"),))
    with pytest.raises(ConfigError, match="'table', a table, has one codebook"):
        apply_plan(text_model(tmp_path), plan, directory=tmp_path / "out")
