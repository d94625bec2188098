"""A project that compiles in seconds: a bag of embedded tokens, two layers, four classes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, TOKENS, CLASSES = 3000, 64, 8, 4

PROJECT = """
app = "tiny"
model = "tiny.onnx"
profile = "float32"

[task]
kind = "arrays"
train = "train.npz"
test = "test.npz"
"""


def write_tiny(folder: Path, *, seed: int = 0) -> Path:
    """Write a model, arrays labelled by the model itself, and the project file."""
    random = np.random.default_rng(seed)
    weights = {
        "table": random.normal(size=(VOCABULARY, WIDTH)),
        "hidden": random.normal(size=(WIDTH, 128)) / 8,
        "bias": random.normal(size=128) / 8,
        "head": random.normal(size=(128, CLASSES)) / 8,
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axes"], ["bag"], keepdims=0),
        helper.make_node("MatMul", ["bag", "hidden"], ["wide"]),
        helper.make_node("Add", ["wide", "bias"], ["shifted"]),
        helper.make_node("Tanh", ["shifted"], ["bent"]),
        helper.make_node("MatMul", ["bent", "head"], ["scores"]),
    ]
    stored = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()]
    stored.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, TOKENS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, CLASSES])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "tiny.onnx")
    session = onnxruntime.InferenceSession(folder / "tiny.onnx")
    for name, count in (("train", 32), ("test", 120)):
        ids = random.integers(0, VOCABULARY, size=(count, 1, TOKENS))
        scores = [session.run(None, {"ids": each})[0] for each in ids]
        labels = np.array([int(np.argmax(each)) for each in scores])
        np.savez(folder / f"{name}.npz", ids=ids, labels=labels)
    (folder / "edgeopt.toml").write_text(PROJECT)
    return folder
