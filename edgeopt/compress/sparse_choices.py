"""Which matrices are stored without blocks of zeros: where these are, or a user asks for them.

Zeros that a model has are used by whatever plan: nothing is lost by it.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from onnx import ModelProto, numpy_helper

from edgeopt.artifact import Choice, Method
from edgeopt.compress.blocks import OPSETS
from edgeopt.compress.opset import obstacle
from edgeopt.compress.sparse import SPARSE, WIDTHS, choose_width
from edgeopt.compress.zeros import choose_kept, input_rows, score_blocks
from edgeopt.model.graph import Weight, initializers, is_hollow, weights
from edgeopt.sparsify import Sparsify

#: The sparse form of each method that has one.
SPARSE_OF: Mapping[Method, Method] = {base: method for method, (_, base) in SPARSE.items()}
#: Roles of weights that are multiplied as matrices.
_ROLES = ("matmul", "gemm")
#: Shares of blocks that a mixture may set to zero, and of what codes: where only bytes count, fewer
#: bits lose less than zeros do.
_SHARES = (0.5, 0.75)
_CODES: Method = "int8-sparse"


def base_of(method: Method) -> Method:
    """Return the method that stores zeros like any other value."""
    return SPARSE[method][1] if method in SPARSE else method


def sparse_choice(
    model: ModelProto,
    weight: Weight,
    choice: Choice,
    rule: Sparsify | None = None,
    *,
    asked: bool,
) -> Choice:
    """Return the sparse form of a choice where it takes fewer bytes, or else the choice itself.

    rule: which values are set to zero first; None: those that are. Where it was not asked for, it
    must not be slower either.
    """
    method = SPARSE_OF.get(choice.method)
    if method is None or choice != Choice(weight=weight.name, method=choice.method):
        return choice
    width = _width(model, weight, method, rule, asked=asked)
    if width is None:
        return choice
    return Choice(weight=weight.name, method=method, width=width, zeros=rule)


def _width(
    model: ModelProto, weight: Weight, method: Method, rule: Sparsify | None, *, asked: bool
) -> int | None:
    """Return the columns of blocks that save bytes; None where none do."""
    tensor = initializers(model.graph)[weight.name]
    if weight.role not in _ROLES:
        return None
    if rule is not None and rule.pattern == "blocks":
        return widest(weight)
    if is_hollow(tensor):
        return None
    values = input_rows(weight, numpy_helper.to_array(tensor))
    if rule is not None:
        if misfit_rule(weight, rule) is not None:
            return None
        by_size = rule.by_size()
        (kept,) = choose_kept([score_blocks(values, 1, by_size.criterion)], by_size)
        values = np.where(kept, values, np.float32(0))
    return choose_width(values, SPARSE[method][0], faster=not asked)


def zeroed_weights(model: ModelProto) -> list[str]:
    """Name the weights that have zeros which may be left out."""
    found = []
    for weight in weights(model.graph):
        plain = Choice(weight=weight.name, method="float32")
        if sparse_choice(model, weight, plain, asked=True) != plain:
            found.append(weight.name)
    return found


def widest(weight: Weight) -> int | None:
    """Return the most columns of a block that divide a weight's outputs; None where none do."""
    return next((each for each in WIDTHS if weight.shape[weight.axis] % each == 0), None)


def misfit_rule(weight: Weight, rule: Sparsify) -> str | None:
    """Say why a weight cannot have such zeros; None when it can."""
    depth = weight.shape[1 - weight.axis]
    if rule.m is not None and depth % rule.m:
        return f"groups of {rule.m} do not divide the {depth} inputs of {weight.name!r}"
    return None


def misfit_sparse(weight: Weight, choice: Choice) -> str | None:
    """Say why a weight cannot be stored so; None when it can."""
    if choice.width is None:
        return None
    if weight.role not in _ROLES:
        return f"{weight.name!r}, a {weight.role} weight, is no matrix of blocks"
    outputs = weight.shape[weight.axis]
    if outputs % choice.width:
        return f"blocks of {choice.width} do not divide the {outputs} outputs of {weight.name!r}"
    return None if choice.zeros is None else misfit_rule(weight, choice.zeros)


def sparse_forms(model: ModelProto, weight: Weight) -> Iterator[Choice]:
    """List the sparse forms of one weight: with the zeros that it has, then with more of them."""
    for base in SPARSE_OF:
        if obstacle(model, OPSETS.get(base, 0)) is None:
            plain = Choice(weight=weight.name, method=base)
            form = sparse_choice(model, weight, plain, asked=True)
            if form != plain:
                yield form
    width = widest(weight) if weight.role in _ROLES else None
    if width is None or obstacle(model, OPSETS[_CODES]) is not None:
        return
    for share in _SHARES:
        zeros = Sparsify(value=share)
        yield Choice(weight=weight.name, method=_CODES, width=width, zeros=zeros)
