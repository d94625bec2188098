"""The catalog: every mistake of a file at once, each with its line and the nearest key."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from edgeopt import catalog
from edgeopt.catalog import Place, find_lines
from edgeopt.errors import ConfigError
from edgeopt.units import Bytes


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Memory(Table):
    ram: Bytes | None = None
    flash: Bytes | None = None


class Part(Table):
    core: str
    count: int = 1
    memory: Memory = Memory()


class Thing(Table):
    name: str
    machine: Literal["aarch64", "arm"] = "arm"
    memory: Memory | None = None
    part: tuple[Part, ...] = ()
    tags: tuple[str, ...] = ()


def write(folder: Path, text: str, name: str = "thing.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        catalog.decode(write(folder, text), Thing)
    return caught.value


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without configuration of their own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_a_correct_file_is_decoded(tmp_path: Path) -> None:
    text = 'name = "x"\ntags = ["a"]\n[memory]\nram = "64MB"\n[[part]]\ncore = "c"\ncount = 2\n'
    thing = catalog.decode(write(tmp_path, text), Thing)
    assert thing.memory == Memory(ram=64_000_000)
    assert thing.part == (Part(core="c", count=2),)
    assert thing.tags == ("a",)


def test_an_unknown_key_has_file_line_place_and_the_nearest_key(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "x"\n\n[memory]\n# a comment\nrma = "64MB"\n')
    assert error.what == f"{tmp_path}/thing.toml:5: memory.rma: unknown key"
    assert error.fix == "did you mean 'ram'?"


def test_an_unknown_key_like_no_other_lists_what_is_known(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "x"\n[memory]\nzzz = 1\n')
    assert error.fix == "known: ram, flash"


def test_an_unknown_key_of_an_array_of_tables_has_the_line_of_its_element(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "x"\n[[part]]\ncore = "a"\n[[part]]\ncore = "b"\ncuont = 2\n')
    assert "thing.toml:6: part[1].cuont: unknown key" in error.what
    assert error.fix == "did you mean 'count'?"


def test_an_unknown_key_below_an_array_of_tables_is_placed_too(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "x"\n[[part]]\ncore = "a"\n[part.memory]\nrma = "1MB"\n')
    assert "thing.toml:5: part[0].memory.rma: unknown key" in error.what
    assert error.fix == "did you mean 'ram'?"


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ('"64"', "'64' is not a number with a unit, like '64MB'"),
        ('"64MBit"', "unknown unit 'MBit' in '64MBit'; use one of B, kB, KB, MB"),
        ("64", "write it as text with its unit, like '64MB'"),
        ("[1]", "write it as text with its unit, like '64MB'"),
    ],
)
def test_a_wrong_quantity_says_how_to_write_it(tmp_path: Path, value: str, what: str) -> None:
    error = refused(tmp_path, f'name = "x"\n[memory]\nram = {value}\n')
    assert f"thing.toml:3: memory.ram: {what}" in error.what


def test_a_wrong_type_is_not_converted(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "x"\n[[part]]\ncore = "a"\ncount = "4"\n')
    assert error.what.endswith("thing.toml:4: part[0].count: must be a valid integer, not '4'")


def test_a_wrong_choice_names_the_nearest(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "x"\nmachine = "aarch46"\n')
    assert "thing.toml:2: machine: must be 'aarch64' or 'arm', not 'aarch46'" in error.what
    assert error.fix == "did you mean 'aarch64'?"


def test_a_missing_key_has_the_line_of_its_table(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "x"\n\n[[part]]\ncount = 2\n')
    assert "thing.toml:3: part[0].core: missing" in error.what


class Whole(Table):
    one: Memory
    several: tuple[Part, ...]
    numbers: tuple[int, ...]
    names: dict[str, str]


def test_what_is_missing_is_added_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        catalog.decode(write(tmp_path, ""), Whole)
    for line in ("add [one]", "add [[several]]", "add numbers = ...", "add [names]"):
        assert f"({line})" in caught.value.what


def test_all_mistakes_of_a_file_are_told_together(tmp_path: Path) -> None:
    error = refused(tmp_path, 'nmae = "x"\n[memory]\nrma = "1MB"\nflash = 1\n')
    lines = error.what.splitlines()
    assert len(lines) == 4
    assert any(":1: nmae: unknown key (did you mean 'name'?)" in line for line in lines)
    assert any(":3: memory.rma: unknown key (did you mean 'ram'?)" in line for line in lines)
    assert any(":4: memory.flash: write it as text" in line for line in lines)
    assert any("name: missing" in line for line in lines)
    assert error.fix == "correct these 4 places"
    numbers = [int(line.split(":")[1]) for line in lines]
    assert numbers == sorted(numbers)


def test_what_is_not_toml_has_its_line(tmp_path: Path) -> None:
    error = refused(tmp_path, 'name = "x"\nmemory = \n')
    assert "thing.toml:2: not TOML: Invalid value" in error.what


def test_a_file_cut_short_is_not_toml(tmp_path: Path) -> None:
    assert "not TOML" in refused(tmp_path, 'name = "x').what


def test_a_file_nested_without_end_is_refused(tmp_path: Path) -> None:
    assert "nested too deep" in refused(tmp_path, "name = " + "[" * 100_000 + "\n").what


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as caught:
        catalog.decode(tmp_path / "absent.toml", Thing)
    assert caught.value.exit_code == 2
    (tmp_path / "bytes.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="not UTF-8"):
        catalog.decode(tmp_path / "bytes.toml", Thing)
    (tmp_path / "huge.toml").write_text("#" * (catalog.LARGEST + 1))
    with pytest.raises(ConfigError, match="too large"):
        catalog.decode(tmp_path / "huge.toml", Thing)


def test_a_part_of_a_file_can_be_ours(tmp_path: Path) -> None:
    text = '[project]\nname = "other"\n[tool.edgeopt]\nname = "x"\n[tool.edgeopt.memory]\nrma = 1\n'
    path = write(tmp_path, text, "pyproject.toml")
    with pytest.raises(ConfigError, match=r"pyproject\.toml:6: memory\.rma: unknown key"):
        catalog.decode(path, Thing, table=("tool", "edgeopt"))


LINES = '''\
title = """
ram = "not a key"
[nor] a table
"""  # [nor.this]
"quoted key" = 1
many = [
  "a [",  # ]
  "b",
]
inline = { one = 1, two = [1,
  2] }

[table . sub]
dotted.key = 1

[[list]]
first = 1
[[list]]
first = 2
[list.sub]
deep = \'\'\'x\'\'\'
'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("title",), 1),
        (("quoted key",), 5),
        (("many",), 6),
        (("inline",), 10),
        (("table",), 13),
        (("table", "sub"), 13),
        (("table", "sub", "dotted"), 14),
        (("table", "sub", "dotted", "key"), 14),
        (("list", 0), 16),
        (("list", 0, "first"), 17),
        (("list", 1), 18),
        (("list", 1, "first"), 19),
        (("list", 1, "sub", "deep"), 21),
    ],
)
def test_every_key_has_its_line(place: Place, line: int) -> None:
    assert find_lines(LINES)[place] == line


def test_text_inside_text_is_no_key() -> None:
    tomllib.loads(LINES)
    places = find_lines(LINES)
    assert ("ram",) not in places
    assert ("nor",) not in places
    assert ("table", "sub", "2] }") not in places


@given(st.text(max_size=200))
def test_the_line_scan_never_fails(text: str) -> None:
    assert all(line >= 1 for line in find_lines(text).values())


def test_an_unknown_name_has_the_nearest_and_the_command_that_lists(alone: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        catalog.load("targets", Thing, "rpi44", project=alone)
    assert caught.value.what == "there is no target 'rpi44'"
    assert caught.value.fix == "did you mean 'rpi4'? list them: edgeopt targets list"


def test_a_project_hides_the_user_and_the_user_hides_what_is_shipped(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = catalog.find_file("targets", "rpi4", project=alone)
    user = alone / "config" / "edgeopt" / "targets"
    user.mkdir(parents=True)
    write(user, 'name = "rpi4"\n', "rpi4.toml")
    assert catalog.find_file("targets", "rpi4", project=alone) == user / "rpi4.toml"
    own = alone / "targets"
    own.mkdir()
    write(own, 'name = "rpi4"\n', "rpi4.toml")
    assert catalog.find_file("targets", "rpi4", project=alone) == own / "rpi4.toml"
    assert catalog.find_file("targets", "rpi4") == user / "rpi4.toml"
    assert shipped not in (own / "rpi4.toml", user / "rpi4.toml")
    assert catalog.find_file("targets", str(shipped)) == shipped


def test_a_name_that_is_not_the_file_s_own_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, '# x\nname = "other"\n')
    with pytest.raises(ConfigError, match=r"thing\.toml:2: name: 'other' is not") as caught:
        catalog.load("targets", Thing, path)
    assert "rename the file to other.toml" in caught.value.fix


def test_the_schema_knows_text_and_no_null() -> None:
    described = catalog.schema_of(Thing)
    ram = described["$defs"]["Memory"]["properties"]["ram"]
    assert ram["type"] == "string"
    assert described["$schema"].startswith("https://json-schema.org/")
    assert described["additionalProperties"] is False
    assert described["required"] == ["name"]
    assert "null" not in str(described)
    assert "default" not in str(described)


def test_importing_the_catalog_loads_nothing_that_lookup_alone_needs() -> None:
    code = "import sys, edgeopt.target, edgeopt.profile; print('platformdirs' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
