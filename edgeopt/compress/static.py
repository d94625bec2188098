"""int8-static: activations quantized with calibrated ranges (QDQ)."""

from collections.abc import Sequence

import numpy as np

from edgeopt.artifact import Range
from edgeopt.compress.codes import encode_range
from edgeopt.compress.edit import Edit
from edgeopt.compress.weights import store_weights
from edgeopt.model.graph import Weight


def quantize_static(edit: Edit, weight: Weight, ranges: Sequence[Range]) -> None:
    """Put QuantizeLinear and DequantizeLinear on the activation, and int8 codes for the weight.

    The node itself stays: its inputs are then both the outputs of a DequantizeLinear.
    """
    known = {each.tensor: each for each in ranges}
    for node in edit.readers(weight.name):
        source = node.input[0]
        scale, zero = encode_range(known[source])
        inputs = (
            edit.store(f"{source}.range.scale", np.asarray(scale)),
            edit.store(f"{source}.range.zero", np.asarray(zero)),
        )
        codes, decoded = f"{source}.codes", f"{source}.decoded"
        if not edit.has(decoded):
            # Once for all that read the activation, so before the first of them.
            first = edit.readers(source)[0]
            edit.insert(first, "QuantizeLinear", (source, *inputs), codes)
            edit.insert(first, "DequantizeLinear", (codes, *inputs), decoded)
        node.input[0] = decoded
    store_weights(edit, weight)
