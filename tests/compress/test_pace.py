"""Predicted times: what counts is the ratio of two plans on one device."""

from pathlib import Path

import pytest

from edgeopt.artifact import Method, Model
from edgeopt.compress import apply_plan, make_plan, pace_of, predict_latency
from edgeopt.compress.pace import Clock, predict_nodes, predict_weights
from edgeopt.target import Target, load_target
from edgeopt.times import KernelTime, Times, WholeTime, name_kernel
from tests.graphs import describe, normal, save_graph

DEPTH, WIDTH, ROWS = 256, 512, 64


def product(folder: Path, *, rows: int = ROWS) -> Model:
    text = f"g (float[{rows},{DEPTH}] x) => (float[{rows},{WIDTH}] y) {{ y = MatMul(x, w) }}"
    return describe(save_graph(folder / f"{rows}.onnx", text, {"w": normal(0, DEPTH, WIDTH)}))


def predicted(model: Model, target: Target, threads: int = 1) -> float:
    return predict_latency(model, Clock(pace_of(target, threads=threads)))


def compressed(model: Model, method: Method, folder: Path) -> Model:
    plan = make_plan(model, method, directory=folder / method)
    return apply_plan(model, plan, directory=folder / method)


def test_a_product_takes_its_multiplications_over_what_the_core_does_in_a_second(
    tmp_path: Path,
) -> None:
    target = load_target("rpi4")
    # 8 operations a cycle at 1.8 GHz; its weights stay in the cache.
    expected = ROWS * DEPTH * WIDTH / (8 / 2 * 1.8e9) * 1e9
    assert predicted(product(tmp_path), target) == pytest.approx(expected)
    assert predicted(product(tmp_path), target, threads=4) == pytest.approx(expected / 3.4)


def test_weights_beyond_the_cache_take_at_least_the_time_to_read_them(tmp_path: Path) -> None:
    target = load_target("rpi4")
    text = "g (float[1,1024] x) => (float[1,1024] y) { y = MatMul(x, w) }"
    model = describe(save_graph(tmp_path / "m.onnx", text, {"w": normal(0, 1024, 1024)}))
    assert target.memory.bandwidth is not None
    reading = 4 * 1024 * 1024 / (2 * target.memory.bandwidth) * 1e9
    assert predicted(model, target) == pytest.approx(reading)


@pytest.mark.parametrize(
    ("name", "method", "ratio"),
    [
        ("rpi4", "float16", 1.0),
        ("rpi5", "float16", 0.5),
        ("rpi4", "int8-weights", 1.0),
        ("rpi4", "int8-dynamic", 0.5),
        ("rpi5", "int8-dynamic", 0.25),
    ],
)
def test_what_a_form_saves_is_what_the_core_does_more_of(
    name: str, method: Method, ratio: float, tmp_path: Path
) -> None:
    target, model = load_target(name), product(tmp_path)
    share = predicted(compressed(model, method, tmp_path), target) / predicted(model, target)
    # Quantizing the activations and scaling the sums costs a little.
    assert ratio - 1e-6 <= share <= ratio + 0.12


def test_a_core_multiplies_halves_of_several_rows_only(tmp_path: Path) -> None:
    target, model = load_target("rpi5"), product(tmp_path, rows=1)
    half = compressed(model, "float16", tmp_path)
    assert predicted(half, target) == predicted(model, target)


def test_recurrent_layers_and_what_has_no_products_take_time_too(tmp_path: Path) -> None:
    text = """
    g (float[5,1,8] x) => (float[5,1,1,16] y) {
        h = LSTM<hidden_size=16>(x, w, r)
        y = Tanh(h)
    }"""
    stored = {"w": normal(0, 1, 64, 8), "r": normal(1, 1, 64, 16)}
    model = describe(save_graph(tmp_path / "m.onnx", text, stored))
    target = load_target("rpi4")
    second = 1.8e9
    sums = 5 * (64 * 8 + 64 * 16) / (4 * second)
    assert predicted(model, target) == pytest.approx((sums + 8 * 80 / (2 * second)) * 1e9)


def test_a_target_without_figures_is_judged_by_its_features(tmp_path: Path) -> None:
    target, model = load_target("generic-aarch64"), product(tmp_path)
    dynamic = compressed(model, "int8-dynamic", tmp_path)
    assert predicted(dynamic, target) < predicted(model, target)


def measured(model: Model, target: Target, *, times: float) -> Times:
    """Return a table in which each product of a model takes so many times its bound."""
    clock = Clock(pace_of(target, threads=1))
    kernels = {
        name_kernel(each.key, 0): KernelTime(
            kind=each.kind, ns=each.bound * times, bound=each.bound
        )
        for each in predict_nodes(model, clock)
        if each.key
    }
    return Times(edgeopt="1", threads=1, kernels=kernels)


def test_what_was_measured_of_a_kernel_is_what_it_takes_in_any_plan(tmp_path: Path) -> None:
    target, model = load_target("rpi4"), product(tmp_path)
    int8 = compressed(model, "int8-weights", tmp_path)
    table = measured(model, target, times=3.0).kernels | measured(int8, target, times=7.0).kernels
    clock = Clock(pace_of(target, threads=1), Times(edgeopt="1", threads=1, kernels=table))
    assert len(table) == 2
    assert predict_latency(model, clock) == pytest.approx(3 * predicted(model, target))
    assert predict_latency(int8, clock) == pytest.approx(7 * predicted(int8, target))


def test_a_kernel_of_another_size_is_as_slow_as_others_of_its_form(tmp_path: Path) -> None:
    target, model = load_target("rpi4"), product(tmp_path)
    int8 = compressed(model, "int8-weights", tmp_path)
    table = measured(model, target, times=3.0).kernels | measured(int8, target, times=7.0).kernels
    clock = Clock(pace_of(target, threads=1), Times(edgeopt="1", threads=1, kernels=table))
    wide = product(tmp_path, rows=ROWS * 2)
    assert predict_latency(wide, clock) == pytest.approx(3 * predicted(wide, target))
    narrow = compressed(wide, "int8-weights", tmp_path)
    assert predict_latency(narrow, clock) == pytest.approx(7 * predicted(narrow, target))


def test_what_is_no_product_takes_what_was_left_of_the_whole(tmp_path: Path) -> None:
    signature = f"float[{ROWS},{DEPTH}] x) => (float[{ROWS},{WIDTH}] y"
    text = f"g ({signature}) {{ h = MatMul(x, w) y = Exp(h) }}"
    model = describe(save_graph(tmp_path / "m.onnx", text, {"w": normal(0, DEPTH, WIDTH)}))
    target = load_target("rpi4")
    table = measured(model, target, times=1.0)
    rest = predicted(model, target) - predicted(product(tmp_path), target)
    whole = WholeTime(methods=(), ns=5 * rest, bound=rest)
    table = table.model_copy(update={"wholes": {model.sha256: whole}})
    clock = Clock(pace_of(target, threads=1), table, model.sha256)
    expected = predicted(product(tmp_path), target) + 5 * rest
    assert predict_latency(model, clock) == pytest.approx(expected)


def test_times_of_weights_are_those_of_the_nodes_that_read_them(tmp_path: Path) -> None:
    target, model = load_target("rpi4"), product(tmp_path)
    clock = Clock(pace_of(target, threads=1))
    int4 = compressed(model, "int4-blocks", tmp_path)
    assert predict_weights(model, clock, ["w"]) == {"w": pytest.approx(predicted(model, target))}
    assert predict_weights(int4, clock, ["w"]) == {"w": pytest.approx(predicted(int4, target))}


def test_every_form_is_a_kind_of_its_own(tmp_path: Path) -> None:
    model, clock = product(tmp_path), Clock(pace_of(load_target("rpi4"), threads=1))
    forms: tuple[Method, ...] = (
        "float16", "int8-weights", "int8-dynamic", "int4-blocks", "codebook16-blocks",
        "codebook4-blocks", "ternary-blocks", "int8-blocks", "codebook-weights",
    )  # fmt: skip
    models = [model, *(compressed(model, each, tmp_path) for each in forms)]
    kinds = [next(each.kind for each in predict_nodes(made, clock) if each.key) for made in models]
    assert kinds == [
        "MatMul FLOAT", "MatMul FLOAT16", "MatMul INT8", "MatMulInteger INT8", "MatMul INT4",
        "MatMul levels UINT4", "MatMul levels UINT2", "MatMul INT2", "MatMul blocks INT8",
        "MatMul levels UINT8",
    ]  # fmt: skip
