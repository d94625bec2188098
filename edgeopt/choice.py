"""What can be done to one weight, as data."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from edgeopt.fact import Fact
from edgeopt.sparsify import Sparsify

#: How one weight is stored and computed with, from the least harm to the most.
#: float32: as it came. float16: stored in half, computed in float32 (Cast).
#: int8-rows: an embedding table, one scale per row (Gather of codes, Gather of scales).
#: int8-weights: one scale per output channel, computed in float32 (DequantizeLinear).
#: int8-blocks: as int4-blocks, with a byte for each value.
#: codebook-weights: codes choose from 4 to 256 numbers of a weight, without scales (Gather).
#: int8-dynamic: activations quantized at run time (DynamicQuantizeLinear, MatMulInteger).
#: int8-static: activations quantized with calibrated ranges (QDQ).
#: int4-blocks: one scale per block of values, computed in float32 (DequantizeLinear in blocks).
#: codebook-rows: an embedding table, one byte for each group of a row's values (Gather of codes,
#: then of the vectors that they stand for).
#: int2-blocks: as int4-blocks, with four values per byte.
#: ternary-blocks, binary-blocks: codes -1, 0, 1 or -1, 1, and one magnitude per block.
#: float32-sparse, float16-sparse, int8-sparse: as without -sparse (int8-weights), where blocks of
#: zeros are neither stored nor multiplied (Gather of blocks).
#: codebook16-blocks, codebook4-blocks: the same two, codes choose from 16 or 4 levels of a weight.
Method = Literal[
    "float32",
    "float32-sparse",
    "float16",
    "float16-sparse",
    "int8-rows",
    "int8-blocks",
    "int8-weights",
    "int8-sparse",
    "codebook-weights",
    "int8-dynamic",
    "int8-static",
    "codebook16-blocks",
    "int4-blocks",
    "codebook-rows",
    "codebook4-blocks",
    "int2-blocks",
    "ternary-blocks",
    "binary-blocks",
]

#: The name of a plan whose weights have forms of their own.
MIXED = "mixed"
#: Methods whose codes can be rounded by what samples say of the layer's input.
_RECONSTRUCTED = (
    "int8-weights",
    "int4-blocks",
    "int2-blocks",
    "codebook16-blocks",
    "codebook4-blocks",
    "codebook-rows",
    "ternary-blocks",
    "binary-blocks",
    "int8-blocks",
)
#: Those whose codes are numbers in even steps.
_EVEN = ("int8-weights", "int8-blocks", "int4-blocks", "int2-blocks")
#: Methods that the factors of a weight of low rank can be stored by.
_FACTORED = (
    "float32",
    "float16",
    "int8-weights",
    "int4-blocks",
    "int2-blocks",
    "codebook16-blocks",
    "codebook4-blocks",
    "int8-blocks",
)
#: Methods that store blocks of so many columns of a row of W [K, N], or leave them out.
SPARSE: tuple[Method, ...] = ("float32-sparse", "float16-sparse", "int8-sparse")


#: How levels of a codebook are chosen: where they lose least, or in even steps, of one size near
#: the mean and another in the tails.
Spacing = Literal["kmeans", "piecewise"]


class Numbers(Fact):
    """What the codes of a weight stand for, where a method leaves that open."""

    #: What shares one scale of int8-rows and int8-weights: a row or output channel, or the whole
    #: tensor, which saves a float for each channel and loses what small channels need.
    granularity: Literal["channel", "tensor"] = "channel"
    #: Whether codes of 8 bits count from a zero point (uint8), so that a range need not be even
    #: about zero: for weights that are not.
    zero_points: bool = False
    #: Whether scales are powers of two (fixed point): decoding is then a shift, for devices that
    #: multiply slowly; a step may be twice as wide as it need be.
    power_of_two: bool = False
    levels: Spacing = "kmeans"

    def meant_for(self, method: Method) -> "Numbers":
        """Return what of this a method leaves open; all else as usual."""
        known = _OPEN.get(method, frozenset())
        return Numbers(**{name: value for name, value in self if name in known})

    @property
    def is_affine(self) -> bool:
        """Whether codes of 8 bits have other scales or zero points than the usual ones."""
        return self.zero_points or self.granularity == "tensor" or self.power_of_two

    @property
    def titles(self) -> tuple[str, ...]:
        """What is not usual, in words."""
        return tuple(title for name, title in _TITLES.items() if self.is_unusual(name))

    def is_unusual(self, name: str) -> bool:
        """Tell whether one of these is not what it is where nothing is said of it."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)


#: What each method leaves open of its numbers.
_OPEN: Mapping[Method, frozenset[str]] = {
    "int8-rows": frozenset({"granularity", "zero_points", "power_of_two"}),
    "int8-weights": frozenset({"granularity", "zero_points", "power_of_two"}),
    "int8-blocks": frozenset({"zero_points", "power_of_two"}),
    "int4-blocks": frozenset({"power_of_two"}),
    "int2-blocks": frozenset({"power_of_two"}),
    "codebook16-blocks": frozenset({"levels"}),
    "codebook4-blocks": frozenset({"levels"}),
    "codebook-weights": frozenset({"levels"}),
}
#: What a plan calls numbers that are not the usual ones.
_TITLES = {
    "granularity": "one scale",
    "zero_points": "zero points",
    "power_of_two": "powers of two",
    "levels": "piecewise",
}


class Choice(Fact):
    """What is done to one weight, named by its initializer in the normalized graph."""

    weight: str
    method: Method
    #: Values of K, or of a table's row, that share one scale: for methods in blocks.
    block: int | None = Field(default=None, ge=16, le=128, multiple_of=16)
    #: Values of a table's row that one byte stands for: for codebook-rows.
    group: int | None = Field(default=None, ge=2, le=32)
    #: Whether codes are rounded by GPTQ, from calibration samples, and not each to the nearest; of
    #: low rank, whether the factors are those that are best on these samples too; of codebook-rows,
    #: whether a row counts by how often samples read it.
    reconstruct: bool = False
    #: By what codes that are reconstructed are rounded: column updates, or AdaRound (with torch).
    rounding: Literal["gptq", "adaround"] = "gptq"
    #: Rank of two factors that take the weight's place, each stored by the method; None: itself.
    rank: int | None = Field(default=None, ge=16, multiple_of=16)

    #: Another weight, whose stored tensor and form take its place; None: it has its own.
    like: str | None = None
    #: Rows of a table that are kept, for all ids to share; None: each has its own.
    rows: int | None = Field(default=None, ge=1)
    #: Numbers that codes choose from: for codebook-weights.
    entries: int | None = Field(default=None, ge=4, le=256)
    #: Output channels of a matrix that choose from the same ones; None: all.
    channels: int | None = Field(default=None, ge=1)
    numbers: Numbers = Numbers()

    @model_validator(mode="after")
    def _numbered(self) -> Self:
        if (self.method == "codebook-weights") != (self.entries is not None):
            needs = "needs the size of its codebook" if self.entries is None else "has no entries"
            raise ValueError(f"{self.method} {needs}")
        if self.channels is not None and self.entries is None:
            raise ValueError(f"channels of {self.method} share no codebook")
        if self.numbers != self.numbers.meant_for(self.method):
            raise ValueError(f"{self.method} does not leave that open: {self.numbers}")
        if self.numbers.levels == "piecewise" and (self.entries or 4) % 4:
            raise ValueError(f"{self.entries} entries cannot be shared out to four pieces")
        usual = self.numbers in (Numbers(), Numbers(levels="piecewise"))
        if self.reconstruct and not usual:
            raise ValueError("only codes of usual scales are reconstructed")
        if self.numbers != Numbers() and (self.rank is not None or self.rows is not None):
            raise ValueError("factors and shared rows have usual scales")
        return self

    #: Consecutive columns of a block that is stored or left out as a whole: for -sparse.
    width: int | None = Field(default=None, ge=4, le=16, multiple_of=4)
    #: Which values become zero before; None: those that are.
    zeros: Sparsify | None = None

    @model_validator(mode="after")
    def _sparse(self) -> Self:
        if (self.method in SPARSE) != (self.width is not None):
            needs = "needs the width of its blocks" if self.width is None else "has no blocks"
            raise ValueError(f"{self.method} {needs}")
        if self.zeros is not None and self.width is None:
            raise ValueError(f"{self.method} saves nothing by zeros")
        return self

    @property
    def learns(self) -> bool:
        """Whether calibration samples decide what is stored."""
        return self.reconstruct or (self.zeros is not None and self.zeros.needs_samples)

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.like is not None and (self.like == self.weight or self.method != "float32"):
            raise ValueError(f"{self.weight} has the form of another weight, and none of its own")
        even = self.method in _EVEN and self.reconstruct
        if self.rounding == "adaround" and not even:
            raise ValueError(f"adaround rounds {' and '.join(_EVEN)} that are reconstructed")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.method.endswith("-blocks") != (self.block is not None):
            needs = "needs a block size" if self.block is None else "has no blocks"
            raise ValueError(f"{self.method} {needs}")
        if self.rank is not None and self.method not in _FACTORED:
            raise ValueError(f"{self.method} cannot store factors of low rank")
        if self.rank is not None and self.rank % (self.block or 1):
            raise ValueError(f"blocks of {self.block} do not divide the rank {self.rank}")
        if (self.method == "codebook-rows") != (self.group is not None):
            needs = "needs the size of its groups" if self.group is None else "has no groups"
            raise ValueError(f"{self.method} {needs}")
        if self.rows is not None and self.rank is not None:
            raise ValueError("rows that ids share have no rank of their own")
        if self.reconstruct and self.rank is None and self.method not in _RECONSTRUCTED:
            raise ValueError(f"{self.method} has no codes that can be reconstructed")
        return self

    @property
    def title(self) -> str:
        """Its form with its sizes: "int4-blocks of 32, rank 64"."""
        if self.like is not None:
            return f"that of {self.like}"
        size = self.block or self.group or self.entries or self.width
        form = self.method if size is None else f"{self.method} of {size}"
        form = form if self.channels is None else f"{form} for {self.channels} channels"
        form = ", ".join((form, *self.numbers.titles))
        form = form if self.rows is None else f"{form}, {self.rows} rows shared"
        form = form if self.zeros is None else f"{form}, {self.zeros.title}"
        return form if self.rank is None else f"{form}, rank {self.rank}"


#: How the range of an activation is found from the values that samples show.
#: minmax: all of them. percentile: all but a few. mse: of least squared error of the codes.
#: entropy: of least Kullback-Leibler divergence of the codes' histogram from that of the values.
RangeRule = Literal["percentile", "minmax", "mse", "entropy"]


class Recipe(Fact):
    """What is done around a method, besides rounding: most of it is for 8 bits."""

    ranges: RangeRule = "percentile"
    #: How much of an activation's spread over channels is moved into the weights that read it
    #: (SmoothQuant's alpha), for int8-dynamic and int8-static; None: nothing.
    smooth: float | None = Field(default=None, gt=0, lt=1)
    #: Whether channels of layers that follow one another get equal ranges.
    equalize: bool = False
    #: Whether biases make up for what rounding weights does to the mean of their outputs.
    correct_bias: bool = False
    #: What codes stand for, of the methods that leave that open.
    numbers: Numbers = Numbers()

    @property
    def needs_samples(self) -> bool:
        """Whether calibration samples decide what it does to weights."""
        return self.smooth is not None or self.correct_bias
