"""Other runtimes, each opened as its users do: every optimization on, no spinning, float32.

A peer takes an ONNX file as it is, or with the converter that its own project ships. LiteRT and
ExecuTorch have neither: they start from the model's source.
"""

import importlib.metadata
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[Any]
Feeds = Mapping[str, Array]
#: Seconds to convert a model.
_CONVERSION = 300


@dataclass(frozen=True, slots=True)
class Peer:
    """A runtime with a model loaded: run() makes one inference on the same inputs."""

    name: str
    version: str
    run: Callable[[], list[Array]]


def open_onnxruntime(path: Path, feeds: Feeds, *, threads: int, work: Path) -> Peer:
    """Open an onnxruntime session."""
    import onnxruntime

    del work
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Threads that spin take the processor from the other runtimes while they have their turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    named = dict(feeds)
    return Peer("onnxruntime", onnxruntime.__version__, lambda: list(session.run(None, named)))


def open_openvino(path: Path, feeds: Feeds, *, threads: int, work: Path) -> Peer:
    """Compile a model with OpenVINO for one request at a time."""
    import openvino

    del work
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
    named = dict(feeds)

    def run() -> list[Array]:
        found = request.infer(named, share_inputs=True, share_outputs=True)
        return [np.asarray(each) for each in found.values()]

    return Peer("openvino", importlib.metadata.version("openvino"), run)


def open_ncnn(path: Path, feeds: Feeds, *, threads: int, work: Path) -> Peer:
    """Convert a model with pnnx, ncnn's converter, and load it with float32 arithmetic."""
    import ncnn
    import pnnx

    source = work / "model.onnx"
    onnx.save(onnx.load(path), source)
    program = next(each for each in Path(pnnx.__file__).parent.rglob("pnnx") if each.is_file())
    subprocess.run(
        [program, source.name, "fp16=0"],
        cwd=work,
        check=True,
        capture_output=True,
        timeout=_CONVERSION,
    )
    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    if net.load_param(str(work / "model.ncnn.param")) or net.load_model(
        str(work / "model.ncnn.bin")
    ):
        raise RuntimeError("ncnn refuses the converted model")
    ordered = [feeds[each.name] for each in onnx.load(path).graph.input]
    inputs = [ncnn.Mat(each, batch_index=0).clone() for each in ordered]
    names = net.output_names()

    def run() -> list[Array]:
        with net.create_extractor() as extractor:
            for number, each in enumerate(inputs):
                extractor.input(f"in{number}", each)
            return [np.asarray(extractor.extract(name)[1]) for name in names]

    return Peer("ncnn", importlib.metadata.version("ncnn"), run)


OPENERS: Mapping[str, Callable[..., Peer]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
    "ncnn": open_ncnn,
}


def difference(found: list[Array], expected: list[Array]) -> float:
    """Return the largest difference relative to an output's largest value, whatever its shape.

    ValueError where the sizes differ: another model was computed.
    """
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if ours.size != theirs.size:
            raise ValueError(f"{ours.shape} instead of {theirs.shape}")
        gap = np.abs(ours.reshape(-1).astype(np.float64) - theirs.reshape(-1))
        worst = max(worst, float(gap.max() / max(np.abs(theirs).max(), 1e-30)))
    return worst
