"""Which board a target runs on: the one that was named, this machine, or an emulated one."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.board import Board, Kind
from edgeopt.errors import ConfigError
from edgeopt.target import Target

if TYPE_CHECKING:
    from edgeopt.board.connect import Patience


@dataclass(frozen=True, slots=True)
class Choice:
    """A board that was chosen but not reached yet."""

    kind: Kind
    connect: Callable[[], Board]
    #: The choice in words, for the first line of a run.
    why: str


def choose_board(
    target: Target,
    address: str | None,
    *,
    ssh_config: Path | None,
    cache: Path,
    required: bool = True,
) -> Choice:
    """Choose by address ("local", "emulated" or an SSH destination), else by the target.

    Without an address a target of this machine's kind runs here, and any other one on its
    emulated board, whose files are below cache. Raises ConfigError when there is neither: at
    once where a board is required, else when it is asked for.
    """
    if address not in (None, "local", "emulated"):
        from edgeopt.board.destination import read_route

        read_route(address, ssh_config=ssh_config)
        return Choice("board", lambda: open_address(address, ssh_config=ssh_config), address)
    here = target.isa.machine == platform.machine()
    if address == "local" or (address is None and here):
        return Choice("native", _open_local, "this machine")
    if target.emulation is None:
        missing = _no_board(target)
        if required:
            raise missing

        def refuse() -> Board:
            raise missing

        return Choice("board", refuse, "compiled only")

    def emulate() -> Board:
        from edgeopt.board.emulator import open_emulated

        return open_emulated(target, cache=cache)

    why = "no board is configured, so an emulated one stands in (instructions, not milliseconds)"
    return Choice("emulated", emulate, why if address is None else "emulated, as asked")


def _no_board(target: Target) -> ConfigError:
    return ConfigError(
        f"there is no board for {target.name}",
        why="no address was given, and this target has no emulated stand-in",
        fix="add --board user@host, or under [boards] in edgeopt.toml: "
        f'{target.name} = "user@host"',
    )


#: Of the emulated boards' kernel, Debian's for arm64.
_EMULATED_PAGE = 4096


def as_emulated(target: Target) -> Target:
    """Return a target as its emulated board presents it, with every difference in the caveat."""
    page, emulation = target.memory.page, target.emulation
    if emulation is None or page == _EMULATED_PAGE:
        return target
    difference = f"has pages of {_EMULATED_PAGE // 1024} KiB where the board has {page // 1024} KiB"
    caveat = "; ".join(filter(None, (emulation.caveat, difference)))
    return target.model_copy(
        update={
            "memory": target.memory.model_copy(update={"page": _EMULATED_PAGE}),
            "emulation": emulation.model_copy(update={"caveat": caveat}),
        }
    )


def _open_local() -> Board:
    from edgeopt.board.local import LocalBoard

    return LocalBoard()


def open_address(
    address: str, *, ssh_config: Path | None, patience: "Patience | None" = None
) -> Board:
    """Open "local" or an SSH destination; raises BoardUnreachable with the way to mend it."""
    if address == "local":
        return _open_local()
    from edgeopt.board.ssh import open_ssh

    return open_ssh(address, ssh_config=ssh_config, patience=patience)
