"""Every shipped profile: it loads, says why, and an emulated run of it stays short."""

import tomllib
from pathlib import Path
from typing import get_args

import pytest

from edgeopt.artifact import Method
from edgeopt.errors import ConfigError
from edgeopt.profile import Profile, load_profile, load_profiles, profile_schema
from tests.test_target import matches, unsourced

FOLDER = Path(__file__).parents[1] / "profiles"
FILES = sorted(FOLDER.glob("*.toml"))
EXPECTED = {"float32", "float16", "int8", "balanced", "pruned", "tiny"}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def test_the_profiles_of_this_release_are_all_there() -> None:
    assert {path.stem for path in FILES} == EXPECTED
    assert set(load_profiles()) >= EXPECTED


@each_file
def test_a_shipped_profile_loads_and_survives_json(path: Path) -> None:
    profile = load_profile(str(path))
    assert Profile.model_validate_json(profile.model_dump_json()) == profile


@each_file
def test_every_value_says_why(path: Path) -> None:
    assert unsourced(path.read_text()) == []


@each_file
def test_methods_go_from_the_least_harm_to_the_most(path: Path) -> None:
    order = get_args(Method)
    ranks = [order.index(method) for method in load_profile(str(path)).methods]
    assert ranks == sorted(ranks)


@each_file
def test_an_emulated_run_stays_short(path: Path) -> None:
    bench = load_profile(str(path)).bench
    # An emulated inference of a small transformer takes 3 to 5 s: this is about a minute.
    assert bench.emulated_warmup + bench.emulated_iterations + bench.emulated_samples <= 12
    assert bench.iterations >= 20  # or there is no 95th percentile


@each_file
def test_an_editor_s_schema_accepts_a_shipped_profile(path: Path) -> None:
    schema = profile_schema()
    assert matches(tomllib.loads(path.read_text()), schema, schema)


def test_balanced_changes_storage_only() -> None:
    profile = load_profile("balanced")
    assert profile.methods == ("float32", "float16", "int8-rows")
    assert profile.budget.ram == 64_000_000


def test_a_percentage_without_its_sign_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\ntitle = "t"\nmethods = ["float16"]\n[budget]\naccuracy_drop = 1\n'
    )
    with pytest.raises(ConfigError, match=r"mine\.toml:5: budget\.accuracy_drop: write it as text"):
        load_profile(str(path))


def test_an_unknown_method_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntitle = "t"\nmethods = [\n  "int8-weight",\n]\n')
    with pytest.raises(ConfigError, match=r"mine\.toml:3: methods\[0\]: must be") as caught:
        load_profile(str(path))
    assert caught.value.fix == "did you mean 'int8-weights'?"


def test_a_method_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntitle = "t"\nmethods = ["float16", "float16"]\n')
    with pytest.raises(ConfigError, match="float16 is listed twice"):
        load_profile(str(path))


def test_an_unknown_profile_has_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'balanced'"):
        load_profile("balancd")


def test_a_profile_says_what_codes_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "fixed.toml"
    text = 'name = "fixed"\ntitle = "Fixed point"\nmethods = ["int8-weights"]\n[recipe.numbers]\n'
    path.write_text(text + 'power_of_two = true\ngranularity = "tensor"\n')
    numbers = load_profile(str(path)).recipe.numbers
    assert numbers.titles == ("one scale", "powers of two")
    path.write_text(text + "power_of_three = true\n")
    with pytest.raises(ConfigError, match="power_of_three"):
        load_profile(str(path))
