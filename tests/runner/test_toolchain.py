"""Locating the wheels that the device program is built from."""

from pathlib import Path

import pytest

from edgeopt.errors import ConfigError
from edgeopt.runner.toolchain import CPU_FLAGS, PINS, TRIPLES, digest_of, find_toolchain, run_zig


def install(folder: Path, name: str, release: str) -> None:
    """Lay out just what importlib.metadata reads of an installed package."""
    place = folder / f"{name.replace('-', '_')}-{release}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")


def test_the_pins_are_those_of_the_package() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    text = pyproject.read_text()
    assert all(f'"{name}=={release}"' in text for name, release in PINS.items())


@pytest.mark.parametrize("name", sorted(PINS))
def test_another_release_is_refused_and_the_pin_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, name, "9.9")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"{name} 9.9 is installed") as raised:
        find_toolchain()
    assert f"pip install {name}=={PINS[name]}" in raised.value.fix


def test_the_sources_are_found_without_importing_them() -> None:
    tools = find_toolchain()
    assert (tools.tvm / "src" / "runtime" / "vm" / "vm.cc").is_file()
    assert (tools.ffi / "src" / "ffi" / "object.cc").is_file()
    assert tools.zig.is_file()


def test_every_machine_has_flags_and_a_triple_of_each_linkage() -> None:
    assert {machine for machine, _ in TRIPLES} == set(CPU_FLAGS)
    assert len(TRIPLES) == 2 * len(CPU_FLAGS)


def test_what_the_compiler_says_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text("int main(void) { return nothing; }\n")
    with pytest.raises(ConfigError, match=r"undeclared identifier 'nothing'"):
        run_zig(find_toolchain(), ["cc", "-c", str(source)], cache=tmp_path, folder=tmp_path)


def test_the_digest_changes_with_options_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one.c", tmp_path / "two.c"
    one.write_text("int x;")
    two.write_text("int x;")
    digests = {
        digest_of(["-Os"], [one]),
        digest_of(["-O2"], [one]),
        digest_of(["-Os"], [two]),
        digest_of(["-O", "s"], [one]),
    }
    assert len(digests) == 4
    before = digest_of(["-Os"], [one])
    one.write_text("int y;")
    assert digest_of(["-Os"], [one]) != before
