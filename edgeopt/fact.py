"""What all data that flows between stages has in common."""

from pydantic import BaseModel, ConfigDict


class Fact(BaseModel):
    """Frozen data that knows its fields and refuses any other."""

    model_config = ConfigDict(frozen=True, extra="forbid")
