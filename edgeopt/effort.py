"""How much a search may cost, as data: three levels, from seconds to an hour."""

from typing import Literal, get_args

from edgeopt.artifact import Fact, Method
from edgeopt.errors import ConfigError

EffortName = Literal["quick", "standard", "thorough"]


class Effort(Fact):
    """What one level looks at."""

    name: EffortName
    #: Whether plans are chosen without any sample of the task: by inputs that are drawn. Labelled
    #: samples still say whether the limit on accuracy holds.
    data_free: bool = False
    #: Forms that are tried; None: all that the profile allows.
    methods: tuple[Method, ...] | None = None
    #: Sizes of blocks that a mixture tries, and ranks of factors.
    blocks: tuple[int, ...] = (32, 128)
    #: Samples that harm of layers is measured on.
    judged: int = 32
    #: Exchanges of two layers' forms that are tried on samples held back, at most.
    swaps: int = 24
    #: Labelled samples that a plan is scored on; None: all.
    scored: int | None = None
    #: Seconds that one integer program may take.
    seconds: float = 20.0


#: Methods that need neither samples nor k-means.
_DATA_FREE: tuple[Method, ...] = (
    "float32",
    "float16",
    "int8-weights",
    "int4-blocks",
    "int2-blocks",
)

QUICK = Effort(
    name="quick",
    data_free=True,
    methods=_DATA_FREE,
    blocks=(32,),
    judged=2,
    swaps=0,
    scored=200,
    seconds=5.0,
)
STANDARD = Effort(name="standard")
THOROUGH = Effort(name="thorough", blocks=(32, 64, 128), judged=128, swaps=200, seconds=120.0)
_LEVELS = {each.name: each for each in (QUICK, STANDARD, THOROUGH)}


def read_effort(text: str) -> Effort:
    """Return a level by its name; raises ConfigError."""
    for name, level in _LEVELS.items():
        if name == text:
            return level
    raise ConfigError(
        f"there is no effort {text!r}", fix=f"write one of {', '.join(get_args(EffortName))}"
    )
