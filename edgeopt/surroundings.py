"""What surrounds a figure: the state of the board, and how its kernel treated the program."""

from pydantic import Field

from edgeopt.fact import Fact


class Conditions(Fact):
    """The state of the board around a measurement; absent values could not be read."""

    temperature_c: float | None = None
    frequency_khz: tuple[int, ...] = ()
    throttled: str | None = None


class Memory(Fact):
    """Peak and final memory of the device program, in bytes (from /proc/self/status)."""

    peak: int
    anonymous: int
    file_backed: int
    start: int
    loaded: int
    minor_faults: int
    major_faults: int


class Process(Fact):
    """How the kernel scheduled the timed inferences; -1 where it does not tell."""

    #: CPUs that the program could run on: "0-3"; "" where unknown.
    cpus: str = ""
    #: Times that it waited for something, and that another program took its place.
    voluntary: int = -1
    involuntary: int = -1


class Around(Fact):
    """The board before and after a run: from before its inputs were sent until its outputs were."""

    #: Of each frequency policy; empty where there is none.
    governors: tuple[str, ...] = ()
    governors_after: tuple[str, ...] = ()
    #: Load average of the last minute (proc(5)); None where unknown.
    load: float | None = None
    load_after: float | None = None
    #: Time in microseconds that something waited for a processor meanwhile (the kernel's pressure
    #: stall information); None where the kernel does not count it.
    pressure_us: int | None = None
    #: Seconds of the board's uptime that all of it took; None where unknown.
    seconds: float | None = None


class Energy(Fact):
    """What the board drew while a model ran without a pause, by a sensor of its own."""

    #: Microwatts that it draws at rest, measured just before the model was loaded.
    idle_uw: int = Field(ge=0)
    #: Microjoules, by the trapezoidal rule over so many readings of the sensor's power.
    drawn_uj: int = Field(ge=0)
    readings: int = Field(ge=2)
    duration_ns: int = Field(gt=0)
    inferences: int = Field(gt=0)

    @property
    def joules(self) -> float:
        """Return what one inference takes, all that the board draws meanwhile included."""
        return self.drawn_uj / 1e6 / self.inferences

    @property
    def joules_above_idle(self) -> float:
        """Return what one inference takes beyond what the board draws at rest in that time."""
        rest = self.idle_uw / 1e6 * self.duration_ns / 1e9
        return self.joules - rest / self.inferences


class Confinement(Fact):
    """The least memory in which a release ran, as the board's kernel enforced it."""

    #: Bytes of memory.max (cgroup v2).
    smallest: int
    #: Launches that it took to find.
    tries: int
