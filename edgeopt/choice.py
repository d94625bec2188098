"""What can be done to one weight, as data."""

from typing import Literal, Self

from pydantic import Field, model_validator

from edgeopt.fact import Fact
from edgeopt.sparsify import Sparsify

#: How one weight is stored and computed with, from the least harm to the most.
#: float32: as it came. float16: stored in half, computed in float32 (Cast).
#: int8-rows: an embedding table, one scale per row (Gather of codes, Gather of scales).
#: int8-weights: one scale per output channel, computed in float32 (DequantizeLinear).
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
    "int8-weights",
    "int8-sparse",
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
)
#: Those whose codes are numbers in even steps.
_EVEN = ("int8-weights", "int4-blocks", "int2-blocks")
#: Methods that the factors of a weight of low rank can be stored by.
_FACTORED = (
    "float32",
    "float16",
    "int8-weights",
    "int4-blocks",
    "int2-blocks",
    "codebook16-blocks",
    "codebook4-blocks",
)
#: Methods that store blocks of so many columns of a row of W [K, N], or leave them out.
SPARSE: tuple[Method, ...] = ("float32-sparse", "float16-sparse", "int8-sparse")


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
        size = self.block or self.group or self.width
        form = self.method if size is None else f"{self.method} of {size}"
        form = form if self.rows is None else f"{form}, {self.rows} rows shared"
        form = form if self.zeros is None else f"{form}, {self.zeros.title}"
        return form if self.rank is None else f"{form}, rank {self.rank}"


#: How the range of an activation is found from the values that samples show.
#: minmax: all of them. percentile: all but a few. mse: of least squared error of the codes.
#: entropy: of least Kullback-Leibler divergence of the codes' histogram from that of the values.
RangeRule = Literal["percentile", "minmax", "mse", "entropy"]


class Recipe(Fact):
    """What is done around a method of 8 bits, besides rounding."""

    ranges: RangeRule = "percentile"
    #: How much of an activation's spread over channels is moved into the weights that read it
    #: (SmoothQuant's alpha), for int8-dynamic and int8-static; None: nothing.
    smooth: float | None = Field(default=None, gt=0, lt=1)
    #: Whether channels of layers that follow one another get equal ranges.
    equalize: bool = False
    #: Whether biases make up for what rounding weights does to the mean of their outputs.
    correct_bias: bool = False

    @property
    def needs_samples(self) -> bool:
        """Whether calibration samples decide what it does to weights."""
        return self.smooth is not None or self.correct_bias
