"""The forms that each weight of a graph can have, and what a method means for it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import GraphProto, numpy_helper

from edgeopt.artifact import Choice, Method, Model
from edgeopt.choice import Numbers
from edgeopt.compress.blocks import BITS, OPSETS, block_axis
from edgeopt.compress.codebook import possible_groups
from edgeopt.compress.lowrank import possible_ranks
from edgeopt.compress.opset import obstacle
from edgeopt.compress.share import possible_shares
from edgeopt.compress.sparse_choices import sparse_forms
from edgeopt.compress.tied import near_ties
from edgeopt.model.graph import Role, Weight, attribute, consumers, initializers, weights

#: Smaller tensors (biases, norms, classifier heads) stay float32: their bytes do not matter.
SMALLEST = 1024
#: Sizes of blocks that are tried, and that of a plan made from a name: the first that divides.
BLOCKS = (32, 64, 128)
_DEFAULT_BLOCKS = (32, 16)
#: How factors of low rank are stored: what is left out of a weight is more than 4 bits lose.
_FACTORS: Method = "int4-blocks"
#: The largest groups that are tried of rows which ids share: few rows have room for more codes.
_SHARED_GROUP = 12

_USUAL = Numbers()
#: Numbers of a codebook-weights' own: as many as a byte can tell apart.
MOST_ENTRIES = 256
#: What forms of a role leave to no choice: there is no kernel for it.
_MISSING: Mapping[Role, tuple[str, ...]] = {
    "conv": ("zero_points",),
    "recurrent": ("zero_points", "granularity"),
}

#: The methods of each role, from the least harm to the most.
_FORMS: Mapping[Role, tuple[Method, ...]] = {
    "table": (
        "float16", "int8-rows", "int8-blocks", "codebook-weights", "codebook16-blocks",
        "int4-blocks", "codebook4-blocks", "int2-blocks", "ternary-blocks", "codebook-rows",
    ),
    "matmul": (
        "float16", "int8-blocks", "int8-weights", "codebook-weights", "int8-dynamic", "int8-static",
        "codebook16-blocks", "int4-blocks", "codebook4-blocks", "int2-blocks", "ternary-blocks",
        "binary-blocks",
    ),
    "gemm": (
        "float16", "int8-blocks", "int8-weights", "codebook-weights", "int8-dynamic", "int8-static",
        "codebook16-blocks", "int4-blocks", "codebook4-blocks", "int2-blocks", "ternary-blocks",
        "binary-blocks",
    ),
    # There is no integer convolution with dynamic ranges that the compiler reads.
    "conv": ("float16", "int8-weights", "int8-static"),
    # Nor is there one of a recurrent layer, in either form.
    "recurrent": ("float16", "int8-weights"),
}  # fmt: skip
#: Instead of a method that a weight has no form for: the first that it has.
_INSTEAD: Mapping[Method, tuple[Method, ...]] = {
    "float32": (),
    "float16": (),
    # Sparse forms are chosen where the others are made: see sparse_choices.
    "float32-sparse": (),
    "float16-sparse": (),
    "int8-sparse": (),
    "int8-rows": ("float16",),
    "int8-blocks": ("int8-weights", "int8-rows"),
    "codebook-weights": ("int8-weights", "int8-rows"),
    "int8-weights": ("int8-rows",),
    "int8-dynamic": ("int8-weights", "int8-rows"),
    "int8-static": ("int8-weights", "int8-rows"),
    "int4-blocks": ("int8-weights", "int8-rows"),
    "int2-blocks": ("int8-weights", "int8-rows"),
    "codebook16-blocks": ("int8-weights", "int8-rows"),
    "codebook4-blocks": ("int8-weights", "int8-rows"),
    "codebook-rows": ("int4-blocks", "int8-weights", "int8-rows"),
    "ternary-blocks": ("int8-weights", "int8-rows"),
    "binary-blocks": ("int8-weights", "int8-rows"),
}


def possible_choices(model: Model) -> dict[str, tuple[Choice, ...]]:
    """List the forms that each weight of at least SMALLEST values can have, other than float32.

    From the least harm to the most by method, and by size of block; then those of low rank, then
    that of another weight that is much like it. Those that can be reconstructed are listed as they
    are without.
    """
    loaded = onnx.load(model.path)
    found = {
        each.name: possible_forms(loaded, each)
        for each in weights(loaded.graph)
        if each.size >= SMALLEST
    }
    ties = {each.weight: (each,) for each in near_ties(loaded, list(found))}
    return {name: (*forms, *ties.get(name, ())) for name, forms in found.items()}


def possible_forms(model: onnx.ModelProto, weight: Weight) -> tuple[Choice, ...]:
    """List the forms that one weight can have, other than float32."""
    found: list[Choice] = []
    for method in _FORMS[weight.role]:
        if obstacle(model, OPSETS.get(method, 0)) is not None:
            continue
        if method in BITS:
            sizes = [each for each in BLOCKS if _divides(each, weight)]
            # Otherwise a plan made from a name would take fewer bytes than any mixture.
            sizes = sizes or [each for each in _DEFAULT_BLOCKS if _divides(each, weight)]
            found.extend(Choice(weight=weight.name, method=method, block=each) for each in sizes)
        elif method == "codebook-rows":
            groups = possible_groups(weight)
            found.extend(Choice(weight=weight.name, method=method, group=each) for each in groups)
        elif _can_hold(model.graph, weight, method):
            entries = MOST_ENTRIES if method == "codebook-weights" else None
            found.append(Choice(weight=weight.name, method=method, entries=entries))
    return (
        *found,
        *sparse_forms(model, weight),
        *_shared_forms(weight),
        *_low_rank_forms(model, weight),
    )


def _shared_forms(weight: Weight) -> Iterator[Choice]:
    """List the forms of a table's rows that ids share: each size with a few groups of values."""
    for rows in reversed(possible_shares(weight)):
        for group in possible_groups(replace(weight, shape=(rows, weight.shape[1]))):
            if group <= _SHARED_GROUP:
                yield Choice(weight=weight.name, method="codebook-rows", group=group, rows=rows)


def _low_rank_forms(model: onnx.ModelProto, weight: Weight) -> Iterator[Choice]:
    """List the ranks that are tried, the highest first; of a table none is as good as codes are."""
    if weight.role == "table" or obstacle(model, OPSETS[_FACTORS]) is not None:
        return
    for rank in reversed(possible_ranks(weight)):
        choice = Choice(weight=weight.name, method=_FACTORS, block=min(BLOCKS[0], rank), rank=rank)
        if misfit(weight, choice) is None:
            yield choice


def choose(
    model: onnx.ModelProto, weight: Weight, method: Method, numbers: Numbers = _USUAL
) -> Choice:
    """Return what a method means for one weight: another one where it has no form for it.

    numbers: what its codes stand for, where the form has such numbers.
    """
    found = _choose(model, weight, method)
    open_ = numbers.meant_for(found.method)
    usual = {name: value for name, value in _USUAL if name in _MISSING.get(weight.role, ())}
    return found.model_copy(update={"numbers": open_.model_copy(update=usual)})


def _choose(model: onnx.ModelProto, weight: Weight, method: Method) -> Choice:
    for each in (method, *_INSTEAD[method]):
        if obstacle(model, OPSETS.get(each, 0)) is not None:
            continue
        if each in BITS:
            block = next((size for size in _DEFAULT_BLOCKS if _divides(size, weight)), None)
            if each in _FORMS[weight.role] and block is not None:
                return Choice(weight=weight.name, method=each, block=block)
        elif each == "codebook-rows":
            group = next(iter(possible_groups(weight)), None)
            if group is not None:
                return Choice(weight=weight.name, method=each, group=group)
        elif each in _FORMS[weight.role] and _can_hold(model.graph, weight, each):
            entries = MOST_ENTRIES if each == "codebook-weights" else None
            return Choice(weight=weight.name, method=each, entries=entries)
    return Choice(weight=weight.name, method="float32")


def misfit(weight: Weight, choice: Choice) -> str | None:
    """Say why a weight has no such form; None when it has."""
    if choice.rows is not None and (weight.role != "table" or choice.rows >= weight.shape[0]):
        return f"ids cannot share {choice.rows} rows of {weight.name!r}"
    if choice.rank is not None:
        return _misfit_rank(weight, choice, choice.rank)
    if choice.method != "float32" and choice.method not in _FORMS[weight.role]:
        return f"{choice.method} is no form of {weight.name!r}, a {weight.role} weight"
    return _misfit_parts(weight, choice) or _misfit_numbers(weight, choice)


def _misfit_parts(weight: Weight, choice: Choice) -> str | None:
    """Say why a weight has no such parts with numbers of their own."""
    if choice.block is not None and not _divides(choice.block, weight):
        depth = weight.shape[block_axis(weight)]
        return f"blocks of {choice.block} do not divide the {depth} values of {weight.name!r}"
    if choice.group is not None and weight.shape[1] % choice.group:
        return f"groups of {choice.group} do not divide the rows of {weight.name!r}"
    if choice.channels is not None and weight.role == "table":
        return f"{weight.name!r}, a table, has one codebook"
    return None


def _misfit_numbers(weight: Weight, choice: Choice) -> str | None:
    """Say why the codes of a weight cannot stand for such numbers, or be found so."""
    missing = _MISSING.get(weight.role, ())
    if any(choice.numbers.is_unusual(each) for each in missing):
        return f"{weight.name!r}, a {weight.role} weight, has no {choice.title}"
    if choice.reconstruct and weight.role == "table" and choice.method != "codebook-rows":
        return f"{weight.name!r}, a table, cannot be reconstructed"
    if choice.reconstruct and weight.role not in ("matmul", "gemm", "table"):
        return f"{weight.name!r}, a {weight.role} weight, cannot be reconstructed"
    return None


def _misfit_rank(weight: Weight, choice: Choice, rank: int) -> str | None:
    """Say why a weight has no such factors; blocks divide the rank, and have to divide K as well.

    A table's first factor has its blocks along the rank.
    """
    if weight.role not in ("table", "matmul", "gemm"):
        return f"{weight.name!r}, a {weight.role} weight, has no form of low rank"
    if rank >= min(weight.shape):
        return f"a rank of {rank} is none below those that {weight.name!r} can have"
    if weight.role == "table":
        return f"{weight.name!r}, a table, cannot be reconstructed" if choice.reconstruct else None
    if choice.block is not None and not _divides(choice.block, weight):
        depth = weight.shape[block_axis(weight)]
        return f"blocks of {choice.block} do not divide the {depth} values of {weight.name!r}"
    return None


def _divides(block: int, weight: Weight) -> bool:
    return weight.shape[block_axis(weight)] % block == 0


def _can_hold(graph: GraphProto, weight: Weight, method: Method) -> bool:
    """Say whether a form of its role holds this weight."""
    if method in ("int8-dynamic", "int8-static"):
        return _plain(graph, weight)
    if method == "float16":
        values = numpy_helper.to_array(initializers(graph)[weight.name])
        limit = np.finfo(np.float16).max
        return bool(values.min() >= -limit and values.max() <= limit)
    return True


def _plain(graph: GraphProto, weight: Weight) -> bool:
    """Say whether all readers are plain products: a Gemm may also scale or transpose."""
    for node in consumers(graph)[weight.name]:
        scaled = any(each.name in ("alpha", "beta") and each.f != 1.0 for each in node.attribute)
        if node.op_type == "Gemm" and (scaled or attribute(node, "transA", 0)):
            return False
    return True
