"""Low rank: a weight W [K, N] as A [K, r] times B [r, N], which are stored like any other weights.

With the inputs X [S, K] of a layer known, the product that is nearest to X W has the first r right
singular vectors V of X W as B = V^T, and A = W V (Eckart and Young 1936 for X W; ASVD, Yuan et al.
2023, arXiv 2312.05821, weights by inputs likewise). X itself is not needed: with H = X^T X = L L^T,
L^T W has the same right singular vectors. Without inputs, and for tables, H is the identity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from edgeopt.artifact import Choice, Method
from edgeopt.compress.blocks import BITS
from edgeopt.compress.codes import Floats, is_blank
from edgeopt.compress.edit import Edit
from edgeopt.compress.factors import Doubles, Factors
from edgeopt.model.graph import Weight

#: Ranks that are tried: all are multiples of a block, so that B can have blocks along K too.
RANKS = (16, 32, 64, 96, 128)
#: The lowest one leaves next to nothing of a weight whose sides are longer than this. Two weights
#: for one take records and code, too: it has to save so many of the values.
_LOWEST, _SMALL_SIDE, _SAVED = RANKS[0], 256, 0.5


def possible_ranks(weight: Weight) -> tuple[int, ...]:
    """List the ranks at which two factors have fewer values than the weight."""
    if weight.role not in ("table", "matmul", "gemm"):
        return ()
    first, second = weight.shape
    most = first * second / (first + second)
    tries_lowest = min(first, second) <= _SMALL_SIDE and most * (1 - _SAVED) >= _LOWEST
    return tuple(each for each in RANKS if each < most and (tries_lowest or each > _LOWEST))


def factor_names(weight: str) -> tuple[str, str]:
    """Name the factors of a weight: the one that its readers come to first, and the other."""
    return f"{weight}.left", f"{weight}.right"


def split_weight(
    values: Floats,
    rank: int,
    hessian: Doubles | None = None,
    factors: Factors | None = None,
) -> tuple[Floats, Floats]:
    """Return A [K, r] and B [r, N] whose product is nearest to W [K, N] on inputs of a Hessian.

    hessian: sum of x^T x over inputs x [K], damped as GPTQ does; None: every input is as likely.
    factors: those that were found of it before.
    """
    if is_blank(values):
        # As where only sizes count.
        return np.zeros((len(values), rank), np.float32), np.zeros(
            (rank, values.shape[1]), np.float32
        )
    wide = values.astype(np.float64)
    right = (factors or Factors()).directions(wide, hessian, rank)
    return (wide @ right.T).astype(np.float32), right.astype(np.float32)


def join_factors(weight: Weight, left: Floats, right: Floats) -> Floats:
    """Multiply what the factors of a weight decode to, in the weight's own orientation."""
    product: Floats = right @ left.T if _is_turned(weight) else left @ right
    return product


@dataclass(frozen=True, slots=True)
class Factorized:
    """A model with factors in the place of weights, and how these are to be stored."""

    model: ModelProto
    choices: tuple[Choice, ...]
    #: H of the factors' layers by their names, for those that are fitted to samples.
    hessians: Mapping[str, Doubles]


def factorize(
    model: ModelProto,
    wanted: Sequence[tuple[Weight, Choice]],
    hessians: Mapping[str, Doubles],
    factors: Factors | None = None,
) -> Factorized:
    """Replace weights by two factors each; factors are those of Hessians that are known.

    Choices that reconstruct split their weight by the hessian of its layer. The second factor's
    layer is given X A where the first one's is given X, so that its hessian is A^T H A.
    """
    if not wanted:
        return Factorized(model, (), {})
    edit = Edit(model)
    choices: list[Choice] = []
    found: dict[str, Doubles] = {}
    for weight, choice in wanted:
        assert choice.rank is not None
        values = edit.value(weight)
        turned = values.T if _is_turned(weight) else values
        hessian = hessians[weight.name] if choice.reconstruct else None
        left, right = split_weight(turned, choice.rank, hessian, factors)
        if hessian is not None:
            first, second = factor_names(weight.name)
            found |= {first: hessian, second: left.T @ hessian @ left}
        _put_factors(edit, weight, left, right.T if _is_turned(weight) else right)
        choices.extend(_stored_as(weight, choice))
    return Factorized(edit.finish(), tuple(choices), found)


def _stored_as(weight: Weight, choice: Choice) -> tuple[Choice, Choice]:
    """Say how both factors are stored: that of a table by rows, where 8 bits have a scale each."""
    left, right = factor_names(weight.name)
    first: Method = choice.method
    if weight.role == "table" and first == "int8-weights":
        first = "int8-rows"
    rounds = choice.reconstruct and (choice.method == "int8-weights" or choice.method in BITS)
    return (
        Choice(weight=left, method=first, block=choice.block, reconstruct=rounds),
        Choice(weight=right, method=choice.method, block=choice.block, reconstruct=rounds),
    )


def _put_factors(edit: Edit, weight: Weight, left: Floats, right: Floats) -> None:
    """Put two products, or a lookup and a product, in the place of every reader."""
    first, second = factor_names(weight.name)
    edit.store(first, left)
    edit.store(second, right)
    for node in edit.readers(weight.name):
        output = edit.replace(node)
        between = f"{output}.low"
        match weight.role:
            case "table":
                edit.insert(node, "Gather", (first, node.input[1]), between, axis=0)
                edit.insert(node, "MatMul", (between, second), output)
            case "matmul":
                edit.insert(node, "MatMul", (node.input[0], first), between)
                edit.insert(node, "MatMul", (between, second), output)
            case _:
                given = _attributes(node)
                turned = given.pop("transA", 0)
                edit.insert(node, "Gemm", (node.input[0], first), between, transA=turned)
                edit.insert(node, "Gemm", (between, second, *node.input[2:]), output, **given)
    edit.forget(weight)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _is_turned(weight: Weight) -> bool:
    """Tell whether a weight is stored as [N, K]."""
    return weight.role == "gemm" and weight.axis == 0
