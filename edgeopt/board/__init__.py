"""The one seam to hardware: run, put, get."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

#: Where a figure comes from. Kinds never mix: an emulated figure counts instructions.
Kind = Literal["native", "emulated", "board"]

#: The status of a command that was killed at its deadline, as coreutils' timeout reports it.
TIMED_OUT = 124
#: Bytes kept of each output stream.
KEPT_OUTPUT = 16 << 20


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended: a failing status is a value, an absent board an error."""

    argv: tuple[str, ...]
    #: Exit status as a shell reports it: 128 + N when signal N ended the command.
    status: int
    stdout: bytes
    stderr: bytes
    #: Whether a stream was longer than what is kept of it (16 MiB, its beginning).
    truncated: bool = False


class Board(Protocol):
    """One live device. Every call raises BoardUnreachable when the device is lost."""

    @property
    def name(self) -> str:
        """What the user calls it: "pi@raspberrypi.local", "emulated rpi4", "this machine"."""
        ...

    @property
    def kind(self) -> Kind:
        """The kind of every figure measured here."""
        ...

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        """Run one program to its end, in the home folder, without a shell.

        After timeout seconds its process group is killed and the status is TIMED_OUT; whatever
        it left behind in its group is killed in any case. A program that is not there ends with
        status 127, one that cannot be executed with 126.
        """
        ...

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        """Write local[offset:] at offset of remote and fsync it; the caller verifies the digest.

        Neither atomic nor resumed: that is deploy's work. The file ends where local ends; a new
        one has mode 0600. Relative paths start at the home folder. Raises BoardIncompatible when
        the board refuses: no folder, no permission, no space.
        """
        ...

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        """Read a regular file of at most limit bytes; BoardIncompatible when it is not one."""
        ...

    def close(self) -> None:
        """Let go of the connection; the device stays as it is."""
        ...
