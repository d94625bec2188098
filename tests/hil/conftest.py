"""The emulated board that the tests of a run share."""

from collections.abc import Iterator

import pytest

from edgeopt.board.emulator import open_emulated, stop_board
from edgeopt.board.ssh import SshBoard
from edgeopt.errors import ConfigError
from edgeopt.target import Cluster, Emulation, Isa, MemoryFacts, Target

INSTANCE = "test-shared"


def make_target(*, cpu: str = "cortex-a72", ram: int = 512 << 20) -> Target:
    """Return a target that is only as much as an emulated board needs."""
    return Target(
        name="tested",
        title="the board of the tests",
        isa=Isa(machine="aarch64", features=("asimd",)),
        cluster=(Cluster(core=cpu, count=1),),
        memory=MemoryFacts(ram=ram),
        emulation=Emulation(cpu=cpu),
    )


@pytest.fixture(scope="session")
def emulated_board() -> Iterator[SshBoard]:
    """A Cortex-A72 with 512 MiB that counts instructions; fresh for each run of the tests."""
    try:
        stop_board(INSTANCE)
        board = open_emulated(make_target(), instance=INSTANCE)
    except ConfigError as error:
        pytest.skip(f"no emulated board here: {error.what}; run: {error.fix}")
    yield board
    board.close()
    stop_board(INSTANCE)
