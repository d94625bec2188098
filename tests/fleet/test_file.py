"""The fleet file: what it means, and what is refused with place and fix."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.errors import ConfigError
from edgeopt.fleet import load_fleet

GOOD = """
target = "rpi4"
parallel = 4
stop_at = "10%"
wait = "30s"

[[board]]
address = "pi@192.0.2.1"

[[board]]
address = "lab-7"
name = "seven"
target = "rpi5"

[[board]]
address = "pi@192.0.2.2"
canary = true
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return path


def test_a_fleet_is_grouped_by_target_with_its_canaries_first(tmp_path: Path) -> None:
    fleet = load_fleet(write(tmp_path, GOOD))
    assert (fleet.parallel, fleet.stop_at, fleet.wait) == (4, 0.1, 30_000)
    groups = fleet.groups()
    assert list(groups) == ["rpi4", "rpi5"]
    assert [each.label for each in groups["rpi4"]] == ["pi@192.0.2.2", "pi@192.0.2.1"]
    assert [each.canary for each in groups["rpi4"]] == [True, False]
    # Where none is named, the first one is the canary.
    assert [(each.label, each.canary) for each in groups["rpi5"]] == [("seven", True)]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('target = "rpi4"\n', "", "board 'pi@192.0.2.1' has no target"),
        ("pi@192.0.2.2", "pi@192.0.2.1", "board 'pi@192.0.2.1' is there twice"),
        ('"seven"', '"pi@192.0.2.1"', "'pi@192.0.2.1' is there twice"),
        ('"seven"', '"a b"', r"fleet.toml:12: board\[1\].name: "),
        ("paralel = 4", "", ""),
        ("parallel = 4", "paralel = 4", "fleet.toml:3: paralel: unknown key"),
        ("parallel = 4", "parallel = 0", "fleet.toml:3: parallel: "),
        ('"10%"', "0.1", "fleet.toml:4: stop_at: write it as text with its unit"),
        ('"10%"', '"110%"', "is not a percentage"),
        ('"30s"', '"30"', "is not a number with a unit"),
        ('"lab-7"', '"local"', "'local' is no board of a fleet"),
        ('address = "lab-7"', 'adress = "lab-7"', r"fleet.toml:11: board\[1\].adress: unknown key"),
        ("canary = true", "canary = 1", r"board\[2\].canary"),
        ("[[board]]", "[board]", "not TOML|board"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(
    tmp_path: Path, before: str, after: str, said: str
) -> None:
    path = write(tmp_path, GOOD.replace(before, after))
    if not said:
        load_fleet(path)
        return
    with pytest.raises(ConfigError, match=said) as caught:
        load_fleet(path)
    assert caught.value.exit_code == 2


def test_a_fleet_without_boards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="board"):
        load_fleet(write(tmp_path, 'target = "rpi4"\nboard = []\n'))
    with pytest.raises(ConfigError, match="board: missing") as caught:
        load_fleet(write(tmp_path, ""))
    assert caught.value.fix == "add [[board]]"
    # What the fix says is what is missing next, until it can be read.
    with pytest.raises(ConfigError, match="address: missing") as caught:
        load_fleet(write(tmp_path, "[[board]]"))
    assert caught.value.fix == "add address = ..."


@settings(max_examples=300, deadline=None)
@given(
    position=st.integers(0, len(GOOD) - 1),
    length=st.integers(0, 30),
    text=st.one_of(
        st.text(max_size=20), st.sampled_from(['"', "[[", "]]", "\0", "=", "{", "1e999"])
    ),
)
def test_a_damaged_file_is_a_fleet_or_an_error_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, position: int, length: int, text: str
) -> None:
    damaged = GOOD[:position] + text + GOOD[position + length :]
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    path.write_bytes(damaged.encode("utf-8", "surrogatepass"))
    with contextlib.suppress(ConfigError):
        assert load_fleet(path).groups()
