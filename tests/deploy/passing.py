"""What a deploy passes through, and a board that notes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgeopt import program
from edgeopt.board import Completed
from edgeopt.deploy import preflight, switch, upload
from tests.board.wrapped import Wrapped

#: What a deploy does, in this order, and what the command has in it that does it.
STATES = {
    "surveying": preflight._SURVEY,
    "preparing": switch._PREPARE,
    "uploading": "",
    "sealing": upload._SEAL,
    "assembling": switch._ASSEMBLE,
    "trying": program._RUN,
    "switching": switch._SWITCH,
    "checking": program._RUN,
    "collecting": switch._COLLECT,
}


@dataclass
class Passing(Wrapped):
    """A board that notes the state which each call belongs to, before it is made; "" for none."""

    states: list[str] = field(default_factory=list)

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        scripts = (state for state, script in STATES.items() if script and _has(argv, script))
        found = next(scripts, "")
        # The program runs to try the release, and again to check it.
        again = found == "trying" and "switching" in self.states
        self.states.append("checking" if again else found)
        return self.inner.run(argv, stdin=stdin, timeout=timeout)

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        self.states.append("uploading" if remote.suffix == ".part" else "")
        self.inner.put(local, remote, offset=offset, timeout=timeout)

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        self.states.append("")
        self.inner.get(remote, local, limit=limit, timeout=timeout)


def _has(argv: Sequence[str], script: str) -> bool:
    return any(script in each for each in argv)
