"""int8-weights: one scale per output channel, computed with in float32."""

import numpy as np

from edgeopt.compress.codes import Codes, Floats, encode_weight
from edgeopt.compress.edit import Edit
from edgeopt.model.graph import Weight


def store_weights(edit: Edit, weight: Weight, encoded: tuple[Codes, Floats] | None = None) -> None:
    """Store int8 codes and put a DequantizeLinear between them and their readers.

    encoded: codes and one scale per output channel, if not each value's nearest code.
    """
    codes, scale = encoded or encode_weight(edit.value(weight), axis=weight.axis)
    inputs = (
        edit.store(f"{weight.name}.int8", codes),
        edit.store(f"{weight.name}.scale", scale),
        # Zeros may be left out by the standard, but onnxruntime 1.31 then adds a wrong shape.
        edit.store(f"{weight.name}.zero", np.zeros(len(scale), np.int8)),
    )
    first = edit.readers(weight.name)[0]
    edit.insert(first, "DequantizeLinear", inputs, weight.name, axis=weight.axis)
    edit.forget(weight)
