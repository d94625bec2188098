"""What a deployment may cost: limits, all of them optional."""

from typing import Self

from pydantic import BaseModel, ConfigDict

from edgeopt.units import Bytes, Fraction, Millis


class Budget(BaseModel):
    """Limits; None is no limit. Reaching a limit exactly is within it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Everything that is stored on the board: program, code, weights, manifest.
    flash: Bytes | None = None
    #: Peak resident memory of the device program (VmHWM).
    ram: Bytes | None = None
    #: The 95th percentile of the measured latency.
    latency: Millis | None = None
    #: Loss of the task's metric against the float32 model, in points: 0.01 of 0.85 to 0.84.
    accuracy_drop: Fraction | None = None

    def merged(self, override: Self) -> Self:
        """Return these limits where override names none, and override's where it does."""
        given = {name: value for name, value in override if value is not None}
        return self.model_copy(update=given)
