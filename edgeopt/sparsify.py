"""Unstructured pruning as data: which values of a matrix become zero before it is stored."""

from typing import Literal, Self

from pydantic import Field, model_validator

from edgeopt.fact import Fact

#: What is kept or zeroed together. blocks: so many consecutive columns of a row of W [K, N], which
#: need not be stored. single: each value by itself. n:m: of so many consecutive values of a column
#: (along K) some stay.
Pattern = Literal["blocks", "single", "n:m"]
#: What says how much values matter: their mean size, their root mean square, or that of each value
#: times the norm of what it is multiplied with on calibration samples (Wanda).
Criterion = Literal["l1", "l2", "wanda"]
#: What is too little. absolute: less than a number. relative: less than a share of the greatest.
#: share: the least ones, so many of each weight. global: so many of all weights together.
#: z-score: so many standard deviations above the mean.
Threshold = Literal["share", "global", "absolute", "relative", "z-score"]


class Sparsify(Fact):
    """Which values become zero."""

    pattern: Pattern = "blocks"
    criterion: Criterion = "l2"
    threshold: Threshold = "share"
    #: What the threshold is about: a share, a number, or standard deviations; not for n:m.
    value: float | None = None
    #: Of m consecutive values n stay, for n:m.
    n: int | None = Field(default=None, ge=1)
    m: int | None = Field(default=None, ge=2, le=64)
    #: Whether what stays is fitted to make up for the rest, by least squares on samples.
    refit: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pattern == "n:m":
            if self.n is None or self.m is None or self.n >= self.m or self.value is not None:
                raise ValueError("n:m needs n below m, and no value")
            if self.threshold != "share":
                raise ValueError("n:m has no threshold: n of m values stay")
        elif self.value is None or self.n is not None or self.m is not None:
            raise ValueError(
                f"{self.pattern} need a value for their threshold, and neither n nor m"
            )
        shares = self.threshold in ("share", "global", "relative")
        if self.value is not None and shares and not 0 < self.value < 1:
            raise ValueError(f"the threshold {self.threshold} is between 0 and 1")
        if self.threshold == "absolute" and self.value is not None and self.value <= 0:
            raise ValueError("an absolute threshold is above 0")
        if self.refit and self.pattern != "blocks":
            raise ValueError("only what stays of blocks is fitted: each column would have its own")
        return self

    @property
    def needs_samples(self) -> bool:
        """Whether calibration samples decide what becomes zero, or what stays of the rest."""
        return self.refit or self.criterion == "wanda"

    @property
    def known(self) -> bool:
        """Whether it says how many blocks stay, whatever their values are."""
        return self.pattern == "blocks" and self.threshold == "share"

    @property
    def title(self) -> str:
        """What becomes zero: "50% of blocks zero (l2)"."""
        if self.pattern == "n:m":
            return f"{self.n} of {self.m} values left ({self.criterion})"
        what = "blocks" if self.pattern == "blocks" else "values"
        assert self.value is not None
        if self.threshold in ("share", "global"):
            of = "" if self.threshold == "share" else " of all weights"
            return f"{self.value:.0%} of {what}{of} zero ({self.criterion})"
        return f"{what} below {self.value:g} {self.threshold} zero ({self.criterion})"

    def by_size(self) -> "Sparsify":
        """Return the same without samples: as many values become zero where that is known."""
        criterion = "l2" if self.criterion == "wanda" else self.criterion
        return self.model_copy(update={"criterion": criterion, "refit": False})
