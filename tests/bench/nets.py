"""The generated models of the suite: standard shapes, seeded random weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from tests.bench.graph import GraphBuilder

WIDTH, HEADS, WIDE = 384, 12, 1536
#: A layer's parameters by their names in a BERT checkpoint, weights [out, in].
Weights = Mapping[str, NDArray[Any]]

_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
_LAST_BLOCKS = ((6, 160, 3, 2), (6, 320, 1, 1))
#: (expansion, channels, repeats, stride): table 2 of Sandler et al., MobileNetV2 (2018).
MOBILENET_V2 = (*_BLOCKS, *_LAST_BLOCKS)


def mlp() -> onnx.ModelProto:
    """Make 128 rows of 384 -> 1536 -> gelu -> 384."""
    graph = GraphBuilder()
    x = graph.input("x", (128, WIDTH))
    wide = graph.gelu(_random_dense(graph, x, WIDTH, WIDE))
    return graph.finish(y=_random_dense(graph, wide, WIDE, WIDTH))


def encoder() -> onnx.ModelProto:
    """Make one BERT layer: 128 tokens, width 384, 12 heads, 1536 inside."""
    graph = GraphBuilder()
    x = graph.input("x", (1, 128, WIDTH))
    return graph.finish(y=_layer(graph, x, _random_layer(graph.random), mask="", length=128))


def minilm(length: int) -> onnx.ModelProto:
    """Make MiniLM-L6 with its published weights: ids and mask [1, L] to the mean vector."""
    from safetensors.numpy import load_file

    from edgeopt.example.questions import package_folder

    stored = load_file(package_folder() / "model.safetensors")
    graph = GraphBuilder()
    ids = graph.input("input_ids", (1, length), "int64")
    mask = graph.input("attention_mask", (1, length), "int64")
    words = graph.node("Gather", graph.constant(stored["embeddings.word_embeddings.weight"]), ids)
    places = stored["embeddings.position_embeddings.weight"][:length]
    types = stored["embeddings.token_type_embeddings.weight"][0]
    x = graph.node("Add", words, graph.constant((places + types)[None]))
    x = _norm(graph, x, stored, "embeddings.LayerNorm")
    kept = graph.node("Cast", mask, to=onnx.TensorProto.FLOAT)
    column = graph.node("Unsqueeze", kept, graph.constant(np.array([2])))
    hidden = graph.node("Sub", graph.constant(1.0), kept)
    hidden = graph.node("Unsqueeze", hidden, graph.constant(np.array([1, 2])))
    bias = graph.node("Mul", hidden, graph.constant(-10000.0))
    for index in range(6):
        start = f"encoder.layer.{index}."
        own = {key.removeprefix(start): v for key, v in stored.items() if key.startswith(start)}
        x = _layer(graph, x, own, mask=bias, length=length)
    axis = graph.constant(np.array([1]))
    total = graph.node("ReduceSum", graph.node("Mul", x, column), axis, keepdims=0)
    count = graph.node("ReduceSum", column, axis, keepdims=0)
    return graph.finish(y=graph.node("Div", total, count))


def _random_dense(graph: GraphBuilder, x: str, come: int, go: int) -> str:
    weight = graph.random.standard_normal((come, go), dtype=np.float32) / np.float32(come**0.5)
    bias = graph.random.standard_normal(go, dtype=np.float32) / np.float32(10)
    return graph.dense(x, weight, bias)


def _random_layer(random: np.random.Generator) -> Weights:
    made: dict[str, NDArray[Any]] = {}
    sizes = {
        "attention.self.query": (WIDTH, WIDTH),
        "attention.self.key": (WIDTH, WIDTH),
        "attention.self.value": (WIDTH, WIDTH),
        "attention.output.dense": (WIDTH, WIDTH),
        "intermediate.dense": (WIDE, WIDTH),
        "output.dense": (WIDTH, WIDE),
    }
    for name, (go, come) in sizes.items():
        scale = np.float32(come**-0.5)
        made[f"{name}.weight"] = random.standard_normal((go, come), dtype=np.float32) * scale
        made[f"{name}.bias"] = random.standard_normal(go, dtype=np.float32) * np.float32(0.1)
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        made[f"{name}.weight"] = 1 + random.standard_normal(WIDTH, dtype=np.float32) / 10
        made[f"{name}.bias"] = random.standard_normal(WIDTH, dtype=np.float32) / 10
    return made


def _norm(graph: GraphBuilder, x: str, weights: Weights, name: str) -> str:
    scale, shift = (graph.constant(weights[f"{name}.{part}"]) for part in ("weight", "bias"))
    return graph.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-12)


def _layer(graph: GraphBuilder, x: str, weights: Weights, *, mask: str, length: int) -> str:
    """Add a BERT layer on [1, L, 384]; mask is added to the scores, unless it is empty."""

    def dense(value: str, name: str) -> str:
        weight = np.ascontiguousarray(weights[f"{name}.weight"].T)
        return graph.dense(value, weight, weights[f"{name}.bias"])

    def heads(name: str, order: list[int]) -> str:
        split = graph.reshape(dense(x, f"attention.self.{name}"), 1, length, HEADS, WIDTH // HEADS)
        return graph.node("Transpose", split, perm=order)

    query, key = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1])
    scores = graph.node("MatMul", query, key)
    scores = graph.node("Div", scores, graph.constant(float(np.sqrt(WIDTH / HEADS))))
    if mask:
        scores = graph.node("Add", scores, mask)
    shares = graph.node("Softmax", scores, axis=-1)
    mixed = graph.node("MatMul", shares, heads("value", [0, 2, 1, 3]))
    mixed = graph.reshape(graph.node("Transpose", mixed, perm=[0, 2, 1, 3]), 1, length, WIDTH)
    x = graph.node("Add", x, dense(mixed, "attention.output.dense"))
    x = _norm(graph, x, weights, "attention.output.LayerNorm")
    wide = graph.gelu(dense(x, "intermediate.dense"))
    x = graph.node("Add", x, dense(wide, "output.dense"))
    return _norm(graph, x, weights, "output.LayerNorm")


def mobilenet() -> onnx.ModelProto:
    """Make MobileNetV2, 224 x 224."""
    graph = GraphBuilder()
    x = graph.conv(
        graph.input("x", (1, 3, 224, 224)), (3, 32), size=3, stride=2, activation="relu6"
    )
    come = 32
    for expansion, go, repeats, stride in MOBILENET_V2:
        for index in range(repeats):
            step, inside, y = stride if index == 0 else 1, come * expansion, x
            if expansion > 1:
                y = graph.conv(y, (come, inside), size=1, activation="relu6")
            y = graph.conv(
                y, (inside, inside), size=3, stride=step, groups=inside, activation="relu6"
            )
            y = graph.conv(y, (inside, go), size=1)
            x = graph.node("Add", x, y) if step == 1 and come == go else y
            come = go
    return _classify(graph, graph.conv(x, (320, 1280), size=1, activation="relu6"), 1280)


def resnet() -> onnx.ModelProto:
    """Make ResNet18, 224 x 224."""
    graph = GraphBuilder()
    x = graph.conv(graph.input("x", (1, 3, 224, 224)), (3, 64), size=7, stride=2, activation="relu")
    x = graph.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    come = 64
    for go, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        for step in (stride, 1):
            y = graph.conv(x, (come, go), size=3, stride=step, activation="relu")
            y = graph.conv(y, (go, go), size=3)
            if step != 1 or come != go:
                x = graph.conv(x, (come, go), size=1, stride=step)
            x, come = graph.node("Relu", graph.node("Add", x, y)), go
    return _classify(graph, x, 512)


def _classify(graph: GraphBuilder, x: str, channels: int, classes: int = 1000) -> onnx.ModelProto:
    x = graph.node("Flatten", graph.node("GlobalAveragePool", x))
    weight = graph.normal(channels, classes, scale=channels**-0.5)
    return graph.finish(y=graph.node("Gemm", x, weight, graph.normal(classes, scale=0.1)))


def small_cnn() -> onnx.ModelProto:
    """Make five convolutions on 112 x 112, two of them depthwise, and a head of ten classes."""
    graph = GraphBuilder()
    x = graph.conv(graph.input("x", (1, 3, 112, 112)), (3, 32), size=3, stride=2, activation="relu")
    x = graph.conv(x, (32, 32), size=3, groups=32, activation="relu")
    x = graph.conv(x, (32, 64), size=1, activation="relu")
    x = graph.conv(x, (64, 64), size=3, stride=2, groups=64, activation="relu")
    x = graph.conv(x, (64, 128), size=3, activation="relu")
    return _classify(graph, x, 128, 10)


def text_cnn() -> onnx.ModelProto:
    """Make a text CNN (Kim, 2014): 64 tokens, width 128, windows of 3, 4 and 5, 100 each."""
    graph = GraphBuilder()
    ids = graph.input("input_ids", (1, 64), "int64")
    rows = graph.node("Gather", graph.normal(20000, 128, scale=1.0), ids)
    x = graph.node("Transpose", rows, perm=[0, 2, 1])
    found = []
    for window in (3, 4, 5):
        weight = graph.normal(100, 128, window, scale=float((128 * window) ** -0.5))
        y = graph.node("Conv", x, weight, graph.normal(100, scale=0.1), kernel_shape=[window])
        y = graph.node("Relu", y)
        found.append(graph.node("ReduceMax", y, graph.constant(np.array([2])), keepdims=0))
    every = graph.node("Concat", *found, axis=1)
    weight = graph.normal(300, 6, scale=300**-0.5)
    return graph.finish(y=graph.node("Gemm", every, weight, graph.normal(6, scale=0.1)))


def lstm(*, layers: int = 1, both: bool = False) -> onnx.ModelProto:
    """Make LSTM layers of 128 units on 32 steps of 64 values, one way or both ways."""
    graph = GraphBuilder()
    steps, come, hidden, ways = 32, 64, 128, 2 if both else 1
    x = graph.input("x", (steps, 1, come))
    for _ in range(layers):
        scale = hidden**-0.5
        y = graph.node(
            "LSTM",
            x,
            graph.normal(ways, 4 * hidden, come, scale=scale),
            graph.normal(ways, 4 * hidden, hidden, scale=scale),
            graph.normal(ways, 8 * hidden, scale=0.1),
            outputs=3,
            hidden_size=hidden,
            direction="bidirectional" if both else "forward",
        )
        come = ways * hidden
        x = graph.reshape(graph.node("Transpose", y, perm=[0, 2, 1, 3]), steps, 1, come)
    return graph.finish(y=x)


def yolo_head() -> onnx.ModelProto:
    """Make a YOLO-like head: three scales joined from the coarse to the fine, boxes and classes."""
    graph = GraphBuilder()
    sizes = {40: 64, 20: 128, 10: 256}
    maps = {size: graph.input(f"x{size}", (1, c, size, size)) for size, c in sizes.items()}
    above, outputs = "", []
    for size, channels in reversed(sizes.items()):
        x, come = maps[size], channels
        if above:
            scales = graph.constant(np.array([1, 1, 2, 2], np.float32))
            wide = graph.node("Resize", above, "", scales, mode="nearest")
            x, come = graph.node("Concat", wide, x, axis=1), channels * 3
        above = graph.conv(x, (come, channels), size=3, activation="silu")
        box = graph.conv(above, (channels, 64), size=3, activation="silu")
        box = graph.conv(box, (64, 4), size=1)
        kind = graph.node("Sigmoid", graph.conv(above, (channels, 80), size=1))
        outputs.append(graph.reshape(graph.node("Concat", box, kind, axis=1), 1, 84, size * size))
    return graph.finish(y=graph.node("Concat", *outputs, axis=2))


def packaged(
    path: Path, *, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, int] | None = None
) -> onnx.ModelProto:
    """Read a model of a package, fix its inputs' shapes, and make inputs with a value constant."""
    model = onnx.load(path)
    for name, number in (values or {}).items():
        (entry,) = (each for each in model.graph.input if each.name == name)
        model.graph.input.remove(entry)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number), name))
    for entry in model.graph.input:
        dimensions = entry.type.tensor_type.shape.dim
        for dimension, size in zip(dimensions, shapes[entry.name], strict=True):
            dimension.dim_value = size
    for entry in model.graph.output:
        entry.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
