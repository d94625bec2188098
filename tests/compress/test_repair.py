"""What a sum of harms gets wrong is found by running the whole."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeopt.artifact import Footprint, Method, Model
from edgeopt.budget import Budget
from edgeopt.compress import predict_footprint
from edgeopt.compress.distance import measure_harm
from edgeopt.compress.mix import Mixer, Selection
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.repair import is_less, repair_choice
from edgeopt.compress.sensitivity import (
    Calibration,
    Option,
    Sensitivity,
    draw_calibration,
    measure_sensitivity,
)
from edgeopt.model.oracle import run_samples
from edgeopt.target import load_target
from tests.graphs import deep_model

METHODS: tuple[Method, ...] = ("float32", "float16", "int8-weights", "int4-blocks", "int2-blocks")


def cost(model: Model) -> Footprint:
    return predict_footprint(model, load_target("rpi4"), runtime=3_000_000, program=1_000_000)


@pytest.fixture
def mixer(tmp_path: Path) -> Mixer:
    model = deep_model(tmp_path)
    choices = mixable_choices(model, METHODS, reconstruct=False)
    calibration = draw_calibration(model, None)
    found = measure_sensitivity(model, choices, calibration, directory=tmp_path / "harm")
    return Mixer(model, found, cost, samples=None, plain=True)


def middle(mixer: Mixer, folder: Path) -> Selection:
    """Choose for half of what lies between the whole model and the smallest."""
    least = mixer.smallest(folder / "least").footprint.flash
    limit = (least + cost(mixer.model).flash) // 2
    chosen = mixer.choose(Budget(flash=limit), folder / "mixed")
    assert chosen is not None
    return chosen


def stitched_harm(mixer: Mixer, places: tuple[int, ...], drawn: Calibration, folder: Path) -> float:
    made = mixer.make(places, folder).model
    expected = run_samples(mixer.model, drawn.held)
    return measure_harm(run_samples(made, drawn.held), expected, classes=False)


def wrong(sensitivity: Sensitivity) -> Sensitivity:
    """Say of the first weight that nothing harms it, which is not so."""
    first, *others = sensitivity.layers
    harmless = tuple(
        Option(choice=each.choice, size=each.size, harm=1e-9 * at) for at, each in enumerate(first)
    )
    return sensitivity.model_copy(update={"layers": (harmless, *others)})


def test_exchanges_find_what_a_wrong_harm_hides(mixer: Mixer, tmp_path: Path) -> None:
    misled = Mixer(mixer.model, wrong(mixer.sensitivity), cost, samples=None, plain=True)
    chosen = middle(misled, tmp_path)
    drawn = draw_calibration(mixer.model, None)
    places = repair_choice(misled, chosen, drawn, tries=60, directory=tmp_path / "repair")
    assert places != chosen.places
    assert chosen.allows(places)
    before = stitched_harm(misled, chosen.places, drawn, tmp_path / "before")
    after = stitched_harm(misled, places, drawn, tmp_path / "after")
    assert after < 0.9 * before


def test_one_form_for_all_weights_is_tried_first(mixer: Mixer, tmp_path: Path) -> None:
    def place(index: int, method: Method) -> int:
        layer = mixer.layers[index]
        return next(at for at, each in enumerate(layer) if each.choice.method == method)

    count = len(mixer.layers)
    uniform = tuple(place(at, "int8-weights") for at in range(count))
    flash = mixer.make(uniform, tmp_path / "uniform").footprint.flash
    chosen = mixer.choose(Budget(flash=flash), tmp_path / "mixed")
    assert chosen is not None
    uneven = tuple(place(at, "int2-blocks" if at % 2 else "int8-weights") for at in range(count))
    drawn = draw_calibration(mixer.model, None)
    worse = replace(chosen, places=uneven)
    found = repair_choice(mixer, worse, drawn, tries=1, directory=tmp_path / "repair")
    assert found == uniform


def test_a_repaired_choice_meets_the_budget_where_limits_leave_room_for_alignment(
    mixer: Mixer, tmp_path: Path
) -> None:
    misled = Mixer(mixer.model, wrong(mixer.sensitivity), cost, samples=None, plain=True)
    drawn = draw_calibration(mixer.model, None)
    chosen = middle(misled, tmp_path)
    wider = tuple(replace(each, most=each.most + 8192) for each in chosen.limits)
    loose = replace(chosen, limits=wider)
    places = repair_choice(misled, loose, drawn, tries=60, directory=tmp_path / "repair")
    made = misled.make(places, tmp_path / "made")
    assert made.footprint.flash <= (chosen.budget.flash or 0)


def test_a_repaired_choice_never_moves_the_outputs_more(mixer: Mixer, tmp_path: Path) -> None:
    chosen = middle(mixer, tmp_path)
    drawn = draw_calibration(mixer.model, None)
    shares: list[float] = []
    places = repair_choice(
        mixer, chosen, drawn, tries=12, directory=tmp_path / "repair", advance=shares.append
    )
    before = stitched_harm(mixer, chosen.places, drawn, tmp_path / "before")
    assert stitched_harm(mixer, places, drawn, tmp_path / "after") <= before * 1.0001
    assert shares == sorted(shares)
    assert list((tmp_path / "repair").iterdir()) == []


def test_without_tries_nothing_is_exchanged(mixer: Mixer, tmp_path: Path) -> None:
    chosen = middle(mixer, tmp_path)
    drawn = draw_calibration(mixer.model, None)
    found = repair_choice(mixer, chosen, drawn, tries=0, directory=tmp_path / "repair")
    assert found == chosen.places


def test_less_harm_on_nearly_every_sample_counts() -> None:
    before = np.geomspace(1.0, 2.0, 32)
    assert is_less(before * np.where(np.arange(32) % 8, 0.9, 1.05), before)


def test_less_harm_on_one_sample_that_outweighs_all_others_does_not_count() -> None:
    before = np.append(np.ones(31), 1000.0)
    found = np.append(np.where(np.arange(31) % 2, 0.9, 1.1), 500.0)
    assert found.sum() < before.sum()
    assert not is_less(found, before)


def test_less_harm_on_most_samples_does_not_count_where_the_sum_is_more() -> None:
    before = np.ones(32)
    assert not is_less(np.append(before[:31] * 0.9, 5.0), before)


def test_no_harm_at_all_is_less_than_some_and_not_than_none() -> None:
    assert is_less(np.zeros(4), np.ones(4))
    assert not is_less(np.zeros(4), np.zeros(4))
