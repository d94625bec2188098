"""The project file: edgeopt.toml names what a command line would otherwise repeat."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from edgeopt.catalog import decode
from edgeopt.errors import ConfigError
from edgeopt.task import Task

#: What an app may be called: it becomes a folder on the board.
APP_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

FILE = "edgeopt.toml"


class Signing(BaseModel):
    """Who signs releases; where it is given, no other release is deployed or restored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: A private key of OpenSSH, or the .pub of one in ssh-agent: "~/.ssh/id_ed25519".
    key: str | None = None
    #: A file as ssh-keygen(1) describes it under ALLOWED SIGNERS; absent: the key alone.
    allowed_signers: str | None = None


class Project(BaseModel):
    """Model, task, profile and boards of one application."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The name under which it is installed on boards.
    app: str = Field(pattern=f"^{APP_NAME}$")
    #: A file ("model.onnx") or a torch factory ("module:function"), beside this file.
    model: str
    #: A profile's name, or a path to one.
    profile: str = "balanced"
    #: Fixed input shapes, as on the command line: input_ids = "1x32".
    shapes: dict[str, str] = {}
    #: Inputs that never change, as constants: sr = 16000.
    values: dict[str, FiniteFloat] = {}
    #: The outputs that the application reads, in its order; none named: all.
    outputs: tuple[str, ...] = ()
    task: Task | None = None
    #: Where a target's board answers: rpi4 = "pi@raspberrypi.local".
    boards: dict[str, str] = {}
    signing: Signing | None = None
    #: The command of this machine that cycles a board's power, by target, as a list of words.
    power: dict[str, tuple[str, ...]] = {}
    #: The place of labgrid in which a target's board is, for tests on it: rpi4 = "desk".
    labgrid: dict[str, str] = {}


def load_project(folder: Path) -> Project:
    """Read a folder's project file; raises ConfigError with file and line."""
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(
            f"there is no {FILE} in {folder}",
            why="without one, the model must be named on the command line",
            fix="add --model model.onnx, or start from: edgeopt init --example questions questions",
        )
    return decode(path, Project)
