"""One stored tensor for several layers: whoever reads a weight reads another one instead.

As layers share their weights in ALBERT (Lan et al. 2019, arXiv 1909.11942), here after training: so
only where two happen to be alike, as tables of words and of outputs often are. Tensors that are
equal share their bytes by themselves.
"""

from collections.abc import Sequence

from onnx import ModelProto, numpy_helper

from edgeopt.artifact import Choice
from edgeopt.compress.codes import Floats
from edgeopt.model.graph import Weight, initializers, weights

#: Weights whose squared distance is a larger share of their squares are no pair: in 2 bits, which
#: lose most of all forms that have bytes of their own, about as much is lost.
NEAR = 0.1


def tie_weights(model: ModelProto, choices: Sequence[Choice]) -> ModelProto:
    """Return the model without the weights of choices, whose readers read those that they name."""
    instead = {each.weight: each.like for each in choices if each.like is not None}
    if not instead:
        return model
    made = ModelProto()
    made.CopyFrom(model)
    for node in made.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
    kept = [each for each in made.graph.initializer if each.name not in instead]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made


def misfit_tie(found: dict[str, Weight], choices: Sequence[Choice]) -> str | None:
    """Say why weights cannot be tied so; None when they can."""
    instead = {each.weight: each.like for each in choices if each.like is not None}
    for name, like in instead.items():
        if like not in found or like in instead:
            return f"{name!r} cannot be {like!r}, which is no weight of its own"
        one, other = found[name], found[like]
        if (one.role, one.shape, one.axis) != (other.role, other.shape, other.axis):
            return f"{name!r} cannot be {like!r}: they are not of one shape, read in one way"
    return None


def near_ties(model: ModelProto, names: Sequence[str]) -> tuple[Choice, ...]:
    """List which of these weights could read another one of them instead, the nearest pairs first.

    A weight whose place another one takes is nobody's instead.
    """
    found: list[Choice] = []
    left, kept = set[str](), set[str]()
    for name, like, distance in nearest_pairs(model, names):
        if distance > NEAR or name in left | kept or like in left:
            continue
        found.append(Choice(weight=name, method="float32", like=like))
        left.add(name)
        kept.add(like)
    return tuple(found)


def nearest_pairs(model: ModelProto, names: Sequence[str]) -> list[tuple[str, str, float]]:
    """List each of some weights with the earlier one nearest to it, the nearest pairs first.

    Nearness is the squared distance relative to the weight's own squares: 0 for equal ones, about 2
    for those that know nothing of one another.
    """
    stored = initializers(model.graph)
    found: list[tuple[str, str, float]] = []
    alike: dict[tuple[str, tuple[int, ...], int], list[tuple[str, Floats]]] = {}
    for weight in weights(model.graph):
        if weight.name not in names:
            continue
        values = numpy_helper.to_array(stored[weight.name]).ravel()
        earlier = alike.setdefault((weight.role, weight.shape, weight.axis), [])
        size = max(_squares(values), 1e-30)
        distances = [(_squares(values - other) / size, name) for name, other in earlier]
        if distances:
            distance, nearest = min(distances)
            found.append((weight.name, nearest, distance))
        earlier.append((weight.name, values))
    return sorted(found, key=lambda each: each[2])


def _squares(values: Floats) -> float:
    return float(values @ values)
