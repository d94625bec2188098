"""edgeopt doctor on keys, limits and code: what is wrong is named with its fix."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.board.destination import read_route
from edgeopt.cli.security import judge_bundle, judge_limits, judge_route
from edgeopt.errors import ConfigError
from edgeopt.target import load_target
from tests.deploy.test_signature import make_key
from tests.deploy.test_signature import pytestmark as needs_ssh_keygen

KNOWN = "[192.0.2.7]:2222 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGludmFsaWQ=\n"


def configure(tmp_path: Path, key: Path, *, known: str = KNOWN) -> Path:
    (tmp_path / "known").write_text(known)
    (tmp_path / "known").chmod(0o600)
    config = tmp_path / "config"
    config.write_text(
        f"Host desk\n  HostName 192.0.2.7\n  Port 2222\n  User pi\n  IdentityFile {key}\n"
        f"  UserKnownHostsFile {tmp_path / 'known'}\n"
    )
    return config


def missing(config: Path) -> dict[str, str]:
    found = judge_route(read_route("desk", ssh_config=config))
    assert all(each.fix for each in found)
    return {each.part.split()[0]: each.found for each in found if not each.ok}


@needs_ssh_keygen
def test_keys_that_are_as_they_should_be_lack_nothing(tmp_path: Path) -> None:
    assert missing(configure(tmp_path, make_key(tmp_path / "key"))) == {}


@needs_ssh_keygen
def test_a_key_or_a_list_that_others_can_touch_is_named(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    config = configure(tmp_path, key, known="")
    key.chmod(0o644)
    (tmp_path / "known").chmod(0o666)
    found = missing(config)
    assert found["key"] == "other accounts may read it"
    assert found["known"] == "other accounts may write it"
    assert found["host"].endswith("has none of [192.0.2.7]:2222")


def test_an_old_kind_of_key_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    (tmp_path / "key.pub").write_text("ssh-dss AAAA old\n")
    assert missing(configure(tmp_path, key))["key"] == "DSA is not accepted any more"


def test_only_a_limit_that_was_tried_is_one() -> None:
    assert judge_limits("enforced").ok
    for each in ("ignored", "forbidden", "absent"):
        found = judge_limits(each)
        assert (found.ok, found.required) == (False, False)


def compile_part(folder: Path, instruction: str) -> None:
    (folder / "part.c").write_text(f'void part(void) {{ __asm__("{instruction}"); }}')
    argv = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.31"]
    argv += ["-mcpu=cortex_a76", "-O2", "-shared", "part.c", "-o", "model.so"]
    subprocess.run(argv, cwd=folder, check=True)


@pytest.mark.host
def test_code_that_the_processor_lacks_is_found_in_what_would_be_pushed(tmp_path: Path) -> None:
    compile_part(tmp_path, "sdot v0.4s, v1.16b, v2.16b")
    newer = {each.part: each for each in judge_bundle(load_target("rpi5"), tmp_path)}
    assert all(each.ok for each in newer.values()), newer
    older = {each.part: each for each in judge_bundle(load_target("rpi4"), tmp_path)}
    found = older["model.so: instructions"]
    assert (found.ok, found.found) == (False, "the processor lacks 1 of asimddp")
    other = {each.part: each.ok for each in judge_bundle(load_target("generic-armv7"), tmp_path)}
    assert other["model.so"] is False


def test_a_folder_without_a_program_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no compiled model"):
        judge_bundle(load_target("rpi4"), tmp_path)
