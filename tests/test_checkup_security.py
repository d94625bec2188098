"""edgeopt doctor on keys, limits and code: what is wrong is named with its fix."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.artifact import Bundle
from edgeopt.board.destination import read_route
from edgeopt.cli.checkup import Finding
from edgeopt.cli.places import report_folder
from edgeopt.cli.security import (
    find_pushed,
    judge_bundle,
    judge_limits,
    judge_pushed,
    judge_route,
)
from edgeopt.errors import ConfigError
from edgeopt.store import Store
from edgeopt.target import load_target
from tests.deploy.kit import make_bundle
from tests.deploy.test_signature import make_key
from tests.deploy.test_signature import pytestmark as needs_ssh_keygen
from tests.samples import measurement, report

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


def compile_part(
    folder: Path,
    code: str,
    *options: str,
    name: str = "model.so",
    triple: str = "aarch64-linux-gnu.2.31",
) -> Path:
    (folder / "part.c").write_text(code)
    argv = [sys.executable, "-m", "ziglang", "cc", "-target", triple, "-O2", "part.c"]
    if name.endswith(".so"):
        argv.append("-shared")
    subprocess.run([*argv, *options, "-o", name], cwd=folder, check=True)
    return folder / name


def findings(target: str, folder: Path) -> dict[str, Finding]:
    return {each.part: each for each in judge_bundle(load_target(target), folder)}


@pytest.mark.host
def test_code_that_the_processor_lacks_is_found_in_what_would_be_pushed(tmp_path: Path) -> None:
    code = 'void part(void) { __asm__("sdot v0.4s, v1.16b, v2.16b"); }'
    compile_part(tmp_path, code, "-mcpu=cortex_a76")
    newer = findings("rpi5", tmp_path)
    assert all(each.ok for each in newer.values()), newer
    found = findings("rpi4", tmp_path)["model.so: instructions"]
    assert (found.ok, found.found) == (False, "the processor lacks 1 of asimddp")
    assert findings("generic-armv7", tmp_path)["model.so"].ok is False


MYSTERY = "double cos(double); void {0}(void); double part(double x) {{ {0}(); return cos(x); }}"


@pytest.mark.host
def test_a_function_that_no_board_has_is_found_in_what_would_be_pushed(tmp_path: Path) -> None:
    compile_part(tmp_path, MYSTERY.format("mystery"), "-lm")
    found = findings("rpi4", tmp_path)["model.so: symbols"]
    assert (found.ok, found.required) == (False, True)
    assert found.found == "calls what no board has: mystery"


@pytest.mark.host
def test_what_the_program_gives_is_looked_up_in_it_where_it_is_there(tmp_path: Path) -> None:
    compile_part(tmp_path, MYSTERY.format("TVMFFIMystery"), "-lm")
    assert findings("rpi4", tmp_path)["model.so: symbols"].ok
    program = "void {}(void) {{}} int main(void) {{ return 0; }}"
    for given, ok in (("TVMFFIOther", False), ("TVMFFIMystery", True)):
        compile_part(tmp_path, program.format(given), "-rdynamic", name="edgeopt-run")
        found = findings("rpi4", tmp_path)
        assert found["model.so: symbols"].ok is ok, found
        assert found["edgeopt-run: symbols"].ok


@pytest.mark.host
def test_a_function_of_another_library_is_one_that_a_board_may_lack(tmp_path: Path) -> None:
    (tmp_path / "map").write_text("OTHER_1.0 { global: mystery; };")
    library = compile_part(
        tmp_path, "void mystery(void) {}", "-Wl,--version-script=map", name="libother.so"
    )
    compile_part(tmp_path, MYSTERY.format("mystery"), "-lm", "-L.", "-lother")
    library.unlink()
    found = findings("rpi4", tmp_path)["model.so: symbols"]
    assert found.found == "calls what no board has: mystery"


@pytest.mark.host
def test_what_was_not_looked_at_is_no_pass(tmp_path: Path) -> None:
    path = compile_part(tmp_path, "void part(void) {}", triple="arm-linux-gnueabihf.2.31")
    found = findings("generic-armv7", tmp_path)
    unseen = found["model.so: instructions"]
    assert (unseen.ok, unseen.required) == (False, False)
    assert unseen.found.startswith("not looked at: ")
    assert found["model.so: symbols"].ok
    path = compile_part(tmp_path, MYSTERY.format("mystery"), "-lm")
    content = bytearray(path.read_bytes())
    # e_shoff and e_shnum: it runs as before, and nothing can be found in it.
    content[40:48], content[60:62] = bytes(8), bytes(2)
    path.write_bytes(content)
    found = findings("rpi4", tmp_path)
    assert found["model.so"].ok
    for part in ("symbols", "instructions"):
        unseen = found[f"model.so: {part}"]
        assert (unseen.ok, unseen.required) == (False, False)
        assert unseen.found.startswith("not looked at: ")


def test_a_folder_without_a_program_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no compiled model"):
        judge_bundle(load_target("rpi4"), tmp_path)


def keep_bundle(store: Store, tmp_path: Path, number: int, target: str) -> Bundle:
    def make(place: Path) -> Bundle:
        compile_part(place, MYSTERY.format(f"mystery{number}"), "-lm")
        bundle = make_bundle(tmp_path / f"bundle{number}", seed=number)
        return bundle.model_copy(update={"path": place, "target": target})

    return store.stage("compile", number, Bundle, make, tools={}).value


def write_report(project: Path, target: str, digest: str) -> None:
    sent = measurement().model_copy(update={"digest": digest})
    row = report().rows[0].model_copy(update={"measurement": sent})
    path = report_folder(project) / f"{target}.json"
    path.parent.mkdir(parents=True)
    path.write_text(report().model_copy(update={"rows": (row,)}).model_dump_json())


@pytest.mark.host
def test_without_a_folder_what_the_last_deploy_sent_is_looked_at(tmp_path: Path) -> None:
    """Or what was compiled last; where there is neither, nothing is said to be good."""
    store, target, project = Store(tmp_path / "cache"), load_target("rpi4"), tmp_path / "project"
    (unseen,) = judge_pushed(target, find_pushed(target, project, store))
    assert (unseen.ok, unseen.required) == (False, False)
    assert unseen.found == "not looked at: nothing that is compiled for rpi4 is here"
    made = [keep_bundle(store, tmp_path, number, "rpi4") for number in range(2)]
    keep_bundle(store, tmp_path, 2, "rpi5")
    assert find_pushed(target, project, store) == made[1:]
    # A run that finds it in the cache has asked for it last.
    keep_bundle(store, tmp_path, 0, "rpi4")
    assert find_pushed(target, project, store) == made[:1]
    found = {each.part: each for each in judge_pushed(target, made[:1])}
    missing = found[f"{made[0].digest[:12]}/model.so: symbols"]
    assert missing.found == "calls what no board has: mystery0"
    write_report(project, "rpi4", made[1].digest)
    assert find_pushed(target, project, store) == made[1:]
    (made[1].path / "model.so").write_bytes(b"cut short")
    assert find_pushed(target, project, store) == []
