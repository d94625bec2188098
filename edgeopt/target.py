"""A kind of device, as data: what its makers say of it and what the compiler needs to know."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgeopt import catalog
from edgeopt.units import Bytes, Hertz, Rate


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cluster(_Table):
    """Cores of one kind. The first cluster of a target is the one that models run on."""

    #: As LLVM's -mcpu names it: "cortex-a72".
    core: str
    count: int = Field(ge=1)
    clock: Hertz | None = None
    l1d: Bytes | None = None
    #: Per core, or shared by the cluster.
    l2: Bytes | None = None
    l2_shared: bool = False
    #: Multiply and add count as two operations; per core.
    fp32_per_cycle: int | None = None
    fp16_per_cycle: int | None = None
    int8_per_cycle: int | None = None


class Isa(_Table):
    """What the code may use. The features are those of /proc/cpuinfo, and checked there."""

    machine: Literal["aarch64", "arm", "x86_64"]
    features: tuple[str, ...]


class MemoryFacts(_Table):
    """Main memory; where boards are sold with several sizes, the smallest."""

    ram: Bytes | None = None
    #: As one core copies (memcpy, bytes copied per second), measured; not the bus's peak.
    bandwidth: Rate | None = None
    #: Shared by all clusters.
    l3: Bytes | None = None
    #: Storage soldered to the board; absent where it is a card.
    flash: Bytes | None = None
    page: Bytes = 4096


class Software(_Table):
    """What the code is linked against."""

    #: Lowest glibc that the vendor's current images carry, as "2.31".
    glibc: str | None = None
    #: dynamic: the program opens model.so with dlopen. static: musl, one file, any Linux.
    linkage: Literal["dynamic", "static"] = "dynamic"


class Emulation(_Table):
    """The emulated stand-in: a CPU that QEMU knows, with the same feature set where it exists."""

    cpu: str
    #: What the stand-in does differently, for the report; empty when nothing that matters.
    caveat: str = ""


class Gpu(_Table):
    """Described, not compiled for."""

    name: str
    api: str
    architecture: str | None = None


class Target(_Table):
    """One kind of device."""

    name: str
    title: str
    isa: Isa
    cluster: tuple[Cluster, ...] = Field(min_length=1)
    memory: MemoryFacts = MemoryFacts()
    software: Software = Software()
    emulation: Emulation | None = None
    gpu: Gpu | None = None

    @property
    def multiplies_halves(self) -> bool:
        """Whether its cores have vector arithmetic on float16."""
        return "asimdhp" in self.isa.features

    @property
    def lanes(self) -> int:
        """float32 lanes of its vectors: NEON, AVX2 or AVX-512."""
        if self.isa.machine != "x86_64":
            return 4
        return 16 if "avx512f" in self.isa.features else 8


def load_target(name_or_path: str | Path, *, project: Path | None = None) -> Target:
    """Find a target by name or path and decode it; raises ConfigError."""
    return catalog.load("targets", Target, name_or_path, project=project)


def load_targets(*, project: Path | None = None) -> dict[str, Target]:
    """Decode every target that a name can mean; raises ConfigError."""
    return catalog.load_all("targets", Target, project=project)


def target_schema() -> dict[str, Any]:
    """Return the JSON Schema of a target's TOML."""
    return catalog.schema_of(Target)
