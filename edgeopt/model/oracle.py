"""onnxruntime, the reference: what a model's outputs are on given inputs."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as pybind

from edgeopt.artifact import Model, TensorSpec
from edgeopt.errors import ModelError
from edgeopt.model.graph import lookup_limit
from edgeopt.model.skim import skim_model

#: What a session raises for inputs that its graph cannot take.
_RUN_ERRORS = (pybind.Fail, pybind.InvalidArgument, pybind.RuntimeException)

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]


def open_session(
    model: Path | bytes, *, threads: int = 1, optimize: bool = True
) -> onnxruntime.InferenceSession:
    """Open a file or its content for repeated runs that compute what its operators say, anywhere.

    Its threads sleep between runs instead of spinning.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # What it would print is in the error that it raises.
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Otherwise DequantizeLinear and MatMul become one operator that rounds activations to int8:
    # outputs move by 2 %.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # Otherwise sums of uint8 by int8 saturate at 16 bits on processors with AVX2 alone.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_model(model: Model | Path, feeds: Feeds, *, optimize: bool = True) -> list[Array]:
    """Run one sample: inputs of the model's own shapes to outputs in the model's order."""
    path = model.path if isinstance(model, Model) else model
    return list(open_session(path, optimize=optimize).run(None, dict(feeds)))


def run_samples(model: Model | Path, samples: Feeds, *, threads: int = 1) -> list[Array]:
    """Run S samples, inputs of shape [S, *input], to outputs stacked as [S, *output].

    Several at once, each with so many threads of its own.
    """
    path = model.path if isinstance(model, Model) else model
    return run_session(open_session(path, threads=threads), samples, threads=threads)


def run_session(
    session: onnxruntime.InferenceSession, samples: Feeds, *, threads: int = 1
) -> list[Array]:
    """Run S samples as run_samples does, in a session of so many threads."""
    running = Running(session, samples, threads=threads)
    try:
        return running.outputs()
    finally:
        running.stop()


class Running:
    """Samples that run while something else is done."""

    def __init__(
        self, session: onnxruntime.InferenceSession, samples: Feeds, *, threads: int = 1
    ) -> None:
        """Begin to run S samples as run_samples does, in a session of so many threads."""

        def run(index: int) -> Sequence[Array]:
            found: Sequence[Array] = session.run(
                None, {name: values[index] for name, values in samples.items()}
            )
            return found

        count = len(next(iter(samples.values())))
        self._pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // threads))
        self._rows = self._pool.map(run, range(count))

    def outputs(self) -> list[Array]:
        """Wait for outputs stacked as [S, *output], once."""
        try:
            rows = list(self._rows)
        except _RUN_ERRORS as error:
            raise ModelError(
                "the model cannot run on the samples",
                why=str(error).rpartition("Status Message: ")[2][:400],
                fix="check the samples of [task]: every value must be one that the model takes",
            ) from error
        return [np.stack(column) for column in zip(*rows, strict=True)]

    def stop(self) -> None:
        """Wait for samples that run; of the others, if there are any left, none ever does."""
        self._pool.shutdown(cancel_futures=True)


def seeded_inputs(model: Model, seed: int) -> dict[str, Array]:
    """Draw one value for every input, valid for what the graph does with it.

    Floats are normal; integers that index a table are below its rows; other integers and
    booleans are a mask, ones and then zeros along the last axis.
    """
    graph = skim_model(model.path).graph
    return draw_inputs(graph, model.inputs, seed)


def draw_inputs(
    graph: onnx.GraphProto, inputs: tuple[TensorSpec, ...], seed: int
) -> dict[str, Array]:
    """Draw the inputs of seeded_inputs for a graph that is loaded already."""
    generator = np.random.default_rng(seed)
    return {each.name: _draw(graph, each, generator) for each in inputs}


def _draw(graph: onnx.GraphProto, spec: TensorSpec, generator: np.random.Generator) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(spec.shape).astype(dtype)
    if dtype.kind not in "iub":
        raise ModelError(
            f"the input {spec.name!r} has elements of type {spec.dtype}",
            why="edgeopt handles numbers and truth values",
            fix="take the conversion out of the model",
        )
    limit = lookup_limit(graph, spec.name)
    if limit is not None:
        return generator.integers(0, limit, spec.shape).astype(dtype)
    if not spec.shape:
        return np.ones((), dtype)
    # A mask of nothing but zeros would make a mean over it meaningless.
    kept = int(generator.integers(1, spec.shape[-1] + 1))
    mask = np.zeros(spec.shape, dtype)
    mask[..., :kept] = 1
    return mask
