"""One stored tensor for several layers: whoever reads a weight reads another one instead.

As layers share their weights in ALBERT (Lan et al. 2019, arXiv 1909.11942), here after training: so
only where two happen to be alike, as tables of words and of outputs often are. Tensors that are
equal share their bytes by themselves.
"""

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, numpy_helper

from edgeopt.artifact import Choice
from edgeopt.model.graph import Weight, initializers, weights


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


def nearest_pairs(model: ModelProto) -> list[tuple[str, str, float]]:
    """List each weight with the earlier one that is nearest to it, the nearest pairs first.

    Nearness is the squared distance relative to the weight's own squares: 0 for equal ones, about 2
    for those that know nothing of one another.
    """
    stored = initializers(model.graph)
    found: list[tuple[str, str, float]] = []
    earlier: list[Weight] = []
    for weight in weights(model.graph):
        values = numpy_helper.to_array(stored[weight.name])
        size = max(float(np.square(values).sum()), 1e-30)
        alike = [
            (float(np.square(values - numpy_helper.to_array(stored[each.name])).sum()) / size, each)
            for each in earlier
            if (each.role, each.shape, each.axis) == (weight.role, weight.shape, weight.axis)
        ]
        if alike:
            distance, nearest = min(alike, key=lambda each: each[0])
            found.append((weight.name, nearest.name, distance))
        earlier.append(weight)
    return sorted(found, key=lambda each: each[2])
