"""Every shipped target is right by itself: it loads, says its sources and knows its stand-in."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import ConfigError
from edgeopt.target import Target, load_target, load_targets, target_schema

FOLDER = Path(__file__).parents[1] / "targets"
FILES = sorted(FOLDER.glob("*.toml"))
EXPECTED = {
    "beagleplay", "generic-aarch64", "generic-armv7", "imx8mp", "jetson-orin-nano", "odroid-n2",
    "orion-o6", "rock5b", "rpi-zero2w", "rpi3", "rpi4", "rpi5", "x86-64",
}  # fmt: skip
#: Arm cores for -M virt in qemu-system-aarch64 7.2 that a target may stand in.
QEMU = {"cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72", "cortex-a76", "max", "neoverse-n1"}
#: What QEMU's models lack: a target with these features needs one of the others.
NO_DOT_PRODUCT = {"cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72"}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def load(path: Path) -> Target:
    return load_target(str(path))


def unsourced(text: str) -> list[str]:
    """Return the keys without a comment on their line or directly above."""
    lines = text.splitlines()
    return [
        line
        for above, line in zip(["", *lines], lines, strict=False)
        if re.match(r"[A-Za-z0-9_-]+\s*=", line)
        and "#" not in re.sub(r'"[^"]*"', "", line)
        and not above.startswith("#")
    ]


def matches(value: Any, node: dict[str, Any], schema: dict[str, Any]) -> bool:
    """Check a TOML value against the part of JSON Schema that our schemas use."""
    if "$ref" in node:
        return matches(value, schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    if "enum" in node:
        return value in node["enum"]
    kind = node["type"]
    if kind == "object":
        known = node["properties"]
        return (
            isinstance(value, dict)
            and set(node.get("required", ())) <= set(value) <= set(known)
            and all(matches(value[key], known[key], schema) for key in value)
        )
    if kind == "array":
        return isinstance(value, list) and all(
            matches(item, node["items"], schema) for item in value
        )
    if kind == "string":
        return isinstance(value, str) and bool(re.search(node.get("pattern", ""), value))
    return isinstance(value, {"integer": int, "boolean": bool, "number": float}[kind])


def test_the_targets_of_this_release_are_all_there() -> None:
    assert {path.stem for path in FILES} == EXPECTED
    assert set(load_targets()) >= EXPECTED


@each_file
def test_a_shipped_target_loads_and_survives_json(path: Path) -> None:
    target = load(path)
    assert Target.model_validate_json(target.model_dump_json()) == target


@each_file
def test_every_value_has_its_source(path: Path) -> None:
    assert unsourced(path.read_text()) == []


def test_the_source_check_sees_a_bare_value() -> None:
    assert unsourced(
        '# a\nname = "x"\ntitle = "y # z"\n\n# b\n\ncount = 4\nclock = "1"  # c\n'
    ) == [
        'title = "y # z"',
        "count = 4",
    ]


@each_file
def test_a_stand_in_is_known_to_the_emulator_and_has_every_feature(path: Path) -> None:
    target = load(path)
    if target.isa.machine != "aarch64":
        assert target.emulation is None
        return
    assert target.emulation is not None
    assert target.emulation.cpu in QEMU
    if {"asimddp", "asimdhp", "atomics"} & set(target.isa.features):
        assert target.emulation.cpu not in NO_DOT_PRODUCT
    if "i8mm" in target.isa.features:
        assert target.emulation.cpu == "max"
    if target.emulation.cpu != target.cluster[0].core:
        assert "stands in" in target.emulation.caveat


@each_file
def test_features_are_words_of_proc_cpuinfo(path: Path) -> None:
    target = load(path)
    assert target.isa.features
    assert len(set(target.isa.features)) == len(target.isa.features)
    assert all(re.fullmatch(r"[a-z0-9_]+", feature) for feature in target.isa.features)
    assert {"aarch64": "asimd", "arm": "neon", "x86_64": "avx2"}[
        target.isa.machine
    ] in target.isa.features


@each_file
def test_dot_product_throughput_is_claimed_only_with_the_instruction(path: Path) -> None:
    target = load(path)
    for cluster in target.cluster:
        if cluster.int8_per_cycle and cluster.fp32_per_cycle:
            ratio = cluster.int8_per_cycle / cluster.fp32_per_cycle
            assert ("asimddp" in target.isa.features) == (ratio >= 4)
        if cluster.fp16_per_cycle:
            assert "asimdhp" in target.isa.features


@each_file
def test_sizes_are_plausible(path: Path) -> None:
    target = load(path)
    assert target.memory.page in (4096, 16384, 65536)
    assert target.memory.ram is None or 2**28 <= target.memory.ram <= 2**34
    for cluster in target.cluster:
        assert cluster.clock is None or 5e8 <= cluster.clock <= 4e9
        assert (cluster.l1d or 1) <= (cluster.l2 or 2**30)


@each_file
def test_a_static_target_needs_no_glibc(path: Path) -> None:
    software = load(path).software
    if software.linkage == "static":
        assert software.glibc is None
    if software.glibc is not None:
        assert tuple(map(int, software.glibc.split("."))) >= (2, 17)


@each_file
def test_an_editor_s_schema_accepts_a_shipped_target(path: Path) -> None:
    schema = target_schema()
    assert matches(tomllib.loads(path.read_text()), schema, schema)


def test_an_editor_s_schema_refuses_what_the_decoder_refuses() -> None:
    schema = target_schema()
    right = tomllib.loads((FOLDER / "rpi4.toml").read_text())
    assert matches(right, schema, schema)
    assert not matches({**right, "extra": 1}, schema, schema)
    assert not matches({**right, "memory": {"ram": 64}}, schema, schema)
    assert not matches({**right, "memory": {"ram": "64"}}, schema, schema)
    assert not matches({key: right[key] for key in right if key != "isa"}, schema, schema)


def test_figures_of_the_pi_4_are_those_measured() -> None:
    target = load_target("rpi4")
    assert target.memory.ram == 2**30
    assert target.cluster[0].clock == 1.8e9
    assert target.cluster[0].l2 == 2**20
    assert target.cluster[0].fp32_per_cycle == 8
    assert "asimddp" not in target.isa.features


def test_the_pi_5_has_pages_of_16_kib() -> None:
    assert load_target("rpi5").memory.page == 16384


def test_a_misspelt_key_of_a_target_has_file_line_and_the_nearest_key(tmp_path: Path) -> None:
    lines = (FOLDER / "rpi4.toml").read_text().replace("\nram =", "\nrma =").splitlines()
    path = tmp_path / "rpi4.toml"
    path.write_text("\n".join(lines))
    line = next(number for number, text in enumerate(lines, 1) if text.startswith("rma"))
    with pytest.raises(ConfigError) as caught:
        load_target(str(path))
    assert caught.value.what.endswith(f"rpi4.toml:{line}: memory.rma: unknown key")
    assert caught.value.fix == "did you mean 'ram'?"
