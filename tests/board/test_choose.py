from pathlib import Path

import pytest

from edgeopt.board.choose import as_emulated, choose_board
from edgeopt.errors import ConfigError
from edgeopt.target import load_target


def kind(target: str, address: str | None, tmp_path: Path) -> str:
    return choose_board(load_target(target), address, ssh_config=None, cache=tmp_path).kind


def test_an_address_wins_over_everything(tmp_path: Path) -> None:
    assert kind("rpi4", "pi@board", tmp_path) == "board"
    assert kind("x86-64", "emulated-looking-alias", tmp_path) == "board"
    assert kind("rpi4", "local", tmp_path) == "native"


def test_a_target_without_a_board_is_emulated_and_says_so(tmp_path: Path) -> None:
    choice = choose_board(load_target("rpi4"), None, ssh_config=None, cache=tmp_path)
    assert choice.kind == "emulated"
    assert "instructions, not milliseconds" in choice.why


def test_a_target_with_neither_board_nor_stand_in_says_where_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[boards\] in edgeopt.toml"):
        kind("generic-armv7", None, tmp_path)


def test_the_stand_in_has_its_own_page_size_and_the_caveat_tells() -> None:
    seen = as_emulated(load_target("rpi5"))
    assert seen.memory.page == 4096
    assert seen.emulation is not None
    assert "4 KiB where the board has 16 KiB" in seen.emulation.caveat
    assert as_emulated(load_target("rpi4")) == load_target("rpi4")


def test_what_is_only_compiled_needs_no_board_until_one_is_asked_for(tmp_path: Path) -> None:
    target = load_target("generic-armv7")
    choice = choose_board(target, None, ssh_config=None, cache=tmp_path, required=False)
    with pytest.raises(ConfigError, match="there is no board for generic-armv7"):
        choice.connect()
