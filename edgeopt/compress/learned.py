"""What calibration samples say of a model's weights, once for all forms that are made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto

from edgeopt.artifact import Choice
from edgeopt.compress.codes import Floats
from edgeopt.compress.factors import Doubles, Factors
from edgeopt.compress.reads import count_reads
from edgeopt.compress.reconstruct import layer_hessians, require_samples
from edgeopt.model.graph import Weight
from edgeopt.model.oracle import Array


@dataclass(frozen=True, slots=True)
class Learned:
    """Sums over samples, by the weights' names."""

    #: X^T X of the inputs X of a weight's layer.
    hessians: Mapping[str, Doubles]
    #: How often rows of a table are expected to be read.
    reads: Mapping[str, Floats]
    #: What was computed of these Hessians so far.
    factors: Factors = field(default_factory=Factors)


def learn(
    model: ModelProto,
    wanted: Sequence[tuple[Weight, Choice]],
    samples: Mapping[str, Array] | None,
) -> Learned:
    """Run samples, inputs as [S, *shape], for the weights whose choices learn from them.

    Raises ConfigError where there are such weights and no samples.
    """
    asked = {weight.name: weight for weight, choice in wanted if choice.learns}
    tables = [each for each in asked.values() if each.role == "table"]
    layers = [each for each in asked.values() if each.role != "table"]
    reads = count_reads(model, tables, require_samples(samples, "reconstructed")) if tables else {}
    hessians = layer_hessians(model, layers, samples)
    return Learned(hessians, reads, Factors(hessians.values()))
