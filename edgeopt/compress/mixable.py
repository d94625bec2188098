"""The forms that a mixture may choose from."""

from collections.abc import Sequence

from edgeopt.artifact import Choice, Method, Model
from edgeopt.compress.blocks import CODEBOOKS
from edgeopt.compress.choices import possible_choices
from edgeopt.compress.sparse import SPARSE
from edgeopt.compress.sparse_choices import SPARSE_OF
from edgeopt.effort import STANDARD, Effort

#: Forms that change how activations are computed are whole plans of their own.
_STORED: tuple[Method, ...] = (
    "float16",
    "int8-rows",
    "int8-blocks",
    "int8-weights",
    "int4-blocks",
    "int2-blocks",
    "codebook16-blocks",
    "codebook4-blocks",
    "codebook-rows",
)
#: Forms of 8 bits or of levels of the weight's own: bytes are better spent on bits than on scales.
_PRECISE: tuple[Method, ...] = ("int8-blocks", *CODEBOOKS)


def mixable_choices(
    model: Model, methods: Sequence[Method], *, reconstruct: bool, effort: Effort = STANDARD
) -> dict[str, tuple[Choice, ...]]:
    """List the forms that a mixture may choose from, those of the allowed methods.

    reconstruct: round by samples what has few bits; 8 bits gain nothing by it.
    """
    allowed = set(methods) & set(_STORED) & set(effort.methods or _STORED)
    if "int8-weights" in allowed:
        allowed.add("int8-rows")
    # Zeros that are there are used by whatever is allowed; more are made where a profile asks.
    kept = allowed | ({"float32"} & set(methods))
    lossless = {method for base, method in SPARSE_OF.items() if base in kept}
    sparse = set(methods) & set(effort.methods or SPARSE)
    return {
        name: tuple(
            _reconstructed(each) if reconstruct and (each.group or not by_rows) else each
            for each in given
            if each.like is not None
            or each.method
            in (allowed if each.width is None else sparse if each.zeros else lossless)
            if _is_tried(each, given, effort)
            if each.rank is None or not effort.data_free
        )
        for name, given in possible_choices(model).items()
        for by_rows in (any(each.method == "int8-rows" for each in given),)
    }


def _is_tried(choice: Choice, given: Sequence[Choice], effort: Effort) -> bool:
    """Tell whether an effort tries a form's blocks: the largest, where none of its sizes fits."""
    sizes = _sizes_of(choice.method, effort)
    if choice.rank is not None or choice.block in sizes:
        return True
    wholes = [each for each in given if each.rank is None]
    blocks = {each.block for each in wholes if each.method == choice.method and each.block}
    return not blocks & set(sizes) and choice.block == max(blocks)


def _sizes_of(method: Method, effort: Effort) -> tuple[int | None, ...]:
    """List the blocks that are tried: to codes that tell much, more scales add little."""
    return (None, *(effort.blocks[-1:] if method in _PRECISE else effort.blocks))


def can_mix(methods: Sequence[Method]) -> bool:
    """Tell whether methods leave a weight more than one form."""
    return len(set(methods) & {"float32", *_STORED}) > 1


def _reconstructed(choice: Choice) -> Choice:
    fitted = not {choice.block, choice.rank, choice.group} <= {None}
    zeros = choice.zeros
    if zeros is not None:
        zeros = zeros.model_copy(update={"criterion": "wanda", "refit": True})
    return choice.model_copy(update={"reconstruct": fitted, "zeros": zeros})
