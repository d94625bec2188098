"""What the user wants, as data: a budget, what may be done to meet it, and how to measure."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edgeopt import catalog
from edgeopt.artifact import Method, Recipe
from edgeopt.budget import Budget
from edgeopt.choice import SPARSE
from edgeopt.sparsify import Sparsify
from edgeopt.units import Fraction


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bench(_Table):
    """How the board is measured. Emulated boards run far slower, and need fewer repeats."""

    #: Untimed inferences before the timed ones.
    warmup: int = Field(default=10, ge=0)
    iterations: int = Field(default=50, ge=1)
    #: Launches of the program at most, where time is measured: three, and more while it is noisy.
    launches: int = Field(default=6, ge=1)
    #: Labelled samples run on the board for the accuracy of what was deployed.
    samples: int = Field(default=100, ge=0)
    #: None is every core of the target's first cluster.
    threads: int | None = Field(default=None, ge=1)
    emulated_warmup: int = Field(default=1, ge=0)
    emulated_iterations: int = Field(default=2, ge=1)
    emulated_samples: int = Field(default=8, ge=0)


class Profile(_Table):
    """One trade of size and speed against accuracy."""

    name: str
    title: str
    #: Whole-model plans to try, from the least harm to the most.
    methods: tuple[Method, ...] = Field(min_length=1)
    #: Whether each weight may have a form of its own, where a method for all does not fit.
    mixed: bool = True
    #: What is done around methods of 8 bits.
    recipe: Recipe = Recipe()
    #: What methods that end in -sparse set to zero first; None: they use the zeros that are there.
    sparsify: Sparsify | None = None
    #: Share of the model's operations that is cut before anything else, in neurons, heads and
    #: channels; None: nothing.
    prune: Fraction | None = Field(default=None, gt=0, lt=1)
    #: Share that may be cut where no plan meets the budget otherwise; None: nothing.
    prune_most: Fraction | None = Field(default=None, gt=0, lt=1)
    budget: Budget = Budget()
    bench: Bench = Bench()

    @field_validator("methods")
    @classmethod
    def _once_each(cls, methods: tuple[Method, ...]) -> tuple[Method, ...]:
        twice = sorted({method for method in methods if methods.count(method) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is listed twice")
        return methods

    @model_validator(mode="after")
    def _sparsified(self) -> Self:
        if self.sparsify is not None and not set(SPARSE) & set(self.methods):
            raise ValueError(f"[sparsify] needs one of the methods {', '.join(SPARSE)}")
        return self


def load_profile(name_or_path: str | Path, *, project: Path | None = None) -> Profile:
    """Find a profile by name or path and decode it; raises ConfigError."""
    return catalog.load("profiles", Profile, name_or_path, project=project)


def load_profiles(*, project: Path | None = None) -> dict[str, Profile]:
    """Decode every profile that a name can mean; raises ConfigError."""
    return catalog.load_all("profiles", Profile, project=project)


def profile_schema() -> dict[str, Any]:
    """Return the JSON Schema of a profile's TOML."""
    return catalog.schema_of(Profile)
