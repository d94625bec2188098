"""One weight by itself: it and the nodes that read it, as a model of its own.

What a form makes of a weight depends on nothing else of the model. A part is as large as its
weight, where a model that is copied, written and read again for one weight is as large as all.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeopt.artifact import Choice, Plan
from edgeopt.compress.blocks import OPSETS
from edgeopt.compress.learned import Learned
from edgeopt.compress.opset import raise_opset
from edgeopt.compress.plan import rewrite_weights
from edgeopt.model.graph import Weight, consumers, describer, initializers


class Parts:
    """The parts of one model, whose inner tensors have known types and shapes."""

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self._model = model
        self._readers = consumers(graph)
        self._stored: Mapping[str, TensorProto] = initializers(graph)
        self._describe = describer(graph)

    def rewrite(
        self,
        weight: Weight,
        choice: Choice,
        learned: Learned,
        rows: npt.NDArray[np.intp] | None = None,
    ) -> ModelProto:
        """Return the part of a weight in the form of a choice, by what was learned from samples.

        Its outputs are those of the nodes that read the weight, its inputs what else these read.
        rows: those that are left of a table; None: all. A part that reads another weight has that
        one's values under its own name.
        """
        if choice.like is not None:
            return self._of(weight, self._renamed(choice.like, weight.name))
        part = self.of(weight) if rows is None else self._of_rows(weight, rows)
        raise_opset(part, OPSETS.get(choice.method, 0))
        return rewrite_weights(part, Plan(name="part", choices=(choice,)), learned)

    def of(self, weight: Weight) -> ModelProto:
        """Return the part of a weight as it came."""
        return self._of(weight, self._stored[weight.name])

    def _renamed(self, name: str, new: str) -> TensorProto:
        return numpy_helper.from_array(numpy_helper.to_array(self._stored[name]), new)

    def _of_rows(self, weight: Weight, rows: npt.NDArray[np.intp]) -> ModelProto:
        values = numpy_helper.to_array(self._stored[weight.name])[rows]
        return self._of(weight, numpy_helper.from_array(values, weight.name))

    def _of(self, weight: Weight, values: TensorProto) -> ModelProto:
        nodes = self._readers[weight.name]
        made = [name for node in nodes for name in node.output if name]
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        graph = helper.make_graph(
            nodes,
            "part",
            [self._describe(name) for name in read if name not in self._stored],
            [self._describe(name) for name in made],
            [
                values if name == weight.name else self._stored[name]
                for name in read
                if name in self._stored
            ],
        )
        return helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
