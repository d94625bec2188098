"""Tiles that were measured on a board: one file per CPU, which later compiles read."""

import datetime
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field, ValidationError

from edgeopt.artifact import Fact
from edgeopt.board import Kind
from edgeopt.errors import ConfigError
from edgeopt.store import write_atomically
from edgeopt.target import Target

#: Rows and columns of a register tile.
Tile: TypeAlias = tuple[int, int]
#: What ranked the tiles: time on a real board, or instructions on an emulated one.
Measured = Literal["time", "instructions"]

#: Features of /proc/cpuinfo that decide which kernels a CPU gets.
_DECISIVE = ("asimddp", "i8mm", "avx512f", "avx512_vnni", "amx_int8")


@dataclass(frozen=True, slots=True, order=True)
class TileKey:
    """One product whose tile is chosen: its kernel, its sizes and the type it reads."""

    kind: str
    rows: int
    columns: int
    depth: int
    #: Of the stored weight, or of the codes that meet it.
    dtype: str

    def __str__(self) -> str:
        return f"{self.kind} {self.rows}x{self.columns}x{self.depth} {self.dtype}"


class TunedTile(Fact):
    """What was found for one product."""

    kind: str
    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    depth: int = Field(ge=1)
    dtype: str
    #: None where none was better than the default.
    tile: Tile | None
    #: Share of its time, or of its instructions, by which the default takes longer.
    gain: float
    measured: Measured
    date: datetime.date
    #: Version of edgeopt that measured it.
    edgeopt: str

    @property
    def key(self) -> TileKey:
        """The product that it is for."""
        return TileKey(self.kind, self.rows, self.columns, self.depth, self.dtype)


class TileFile(Fact):
    """All that was found for one CPU."""

    schema_version: Literal[1] = 1
    cpu: str
    tiles: tuple[TunedTile, ...] = ()

    def merged(self, found: Iterable[TunedTile]) -> "TileFile":
        """Return this with what was found replacing what was known of the same products."""
        known = {(each.key, each.measured): each for each in self.tiles}
        known |= {(each.key, each.measured): each for each in found}
        return TileFile(cpu=self.cpu, tiles=tuple(known[name] for name in sorted(known)))

    def chosen(self, measured: Measured) -> Mapping[TileKey, Tile]:
        """Return the tiles that won by one kind of figure: kinds never mix."""
        return {
            each.key: each.tile
            for each in self.tiles
            if each.tile is not None and each.measured == measured
        }


def measured_on(kind: Kind) -> Measured:
    """Return what a kind of board can measure."""
    return "instructions" if kind == "emulated" else "time"


def name_cpu(target: Target) -> str:
    """Name what tiles are measured for: machine, core and the features that decide on kernels.

    Two targets with the same name share what was measured.
    """
    features = [name for name in _DECISIVE if name in target.isa.features]
    return "+".join([f"{target.isa.machine}-{target.cluster[0].core}", *features])


def digest_tiles(tiles: Mapping[TileKey, Tile]) -> str:
    """Return a digest of the tiles that differ from the default; "" where none does."""
    if not tiles:
        return ""
    return hashlib.sha256(repr(sorted(tiles.items())).encode()).hexdigest()


def read_tiles(path: Path, cpu: str) -> TileFile:
    """Read a file, strictly; one without entries where there is none. Raises ConfigError."""
    try:
        found = TileFile.model_validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return TileFile(cpu=cpu)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise _broken(path, f"{place}: {first['msg']}") from error
    if found.cpu != cpu:
        raise _broken(path, f"it is of {found.cpu}, not of {cpu}")
    return found


def _broken(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} does not hold tiles", why=why, fix="mend it, or remove it: edgeopt tune --clear"
    )


def write_tiles(path: Path, tiles: TileFile) -> None:
    """Replace a file, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (tiles.model_dump_json(indent=1) + "\n").encode())
