"""onnxruntime's own quantizers, each as its documentation uses it: a file in, a file out."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from onnxruntime import quantization
from onnxruntime.quantization import matmul_nbits_quantizer as nbits
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeopt.model.oracle import Feeds

#: Makes a smaller model of one, given calibration samples, every input as [S, *shape].
Quantizer = Callable[[Path, Path, Feeds], None]


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Gives calibration samples one by one, as often as it is asked to start again."""

    def __init__(self, samples: Feeds) -> None:
        self._samples = samples
        self.rewind()

    def rewind(self) -> None:
        """Start at the first sample again."""
        self._rows = _rows(self._samples)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next sample; None after the last."""
        return next(self._rows, None)


def _rows(samples: Feeds) -> Iterator[dict[str, Any]]:
    for index in range(len(next(iter(samples.values())))):
        yield {name: values[index] for name, values in samples.items()}


def static(*operators: str) -> Quantizer:
    """Quantize weights per channel, and activations with the ranges of the samples, as QDQ.

    Without operators named, all that it knows are quantized, and their outputs are codes too.
    """

    def work(source: Path, output: Path, samples: Feeds) -> None:
        quantization.quantize_static(
            _prepared(source, output),
            output,
            Reader(samples),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(operators) or None,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )

    return work


def dynamic(source: Path, output: Path, _samples: Feeds) -> None:
    """Quantize weights per channel, and activations while the model runs."""
    quantization.quantize_dynamic(
        _prepared(source, output),
        output,
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )


def _prepared(source: Path, output: Path) -> Path:
    """Optimize and infer shapes, as both quantizers ask for."""
    prepared = output.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    return prepared


def blocks(bits: int, size: int, *, table: bool = True) -> Quantizer:
    """Round matrices to a few bits in blocks, and embedding tables to 4 bits in the same."""

    def work(source: Path, output: Path, _samples: Feeds) -> None:
        model = _in_blocks(onnx.load(source), ("MatMul",), bits, size)
        _save(_in_blocks(model, ("Gather",), 4, size) if table else model, output)

    return work


def half_quadratic(bits: int, size: int) -> Quantizer:
    """Choose scales and zeros of matrices by HQQ; tables, which it has no form for, as blocks."""

    def work(source: Path, output: Path, _samples: Feeds) -> None:
        config = nbits.HQQWeightOnlyQuantConfig(
            block_size=size, bits=bits, op_types_to_quantize=("MatMul",)
        )
        quantizer = nbits.MatMulNBitsQuantizer(onnx.load(source), bits=bits, algo_config=config)
        quantizer.process()
        _save(_in_blocks(quantizer.model.model, ("Gather",), 4, size), output)

    return work


def corrected(size: int) -> Quantizer:
    """Round matrices to 4 bits by GPTQ, with the samples; tables as blocks."""

    def work(source: Path, output: Path, samples: Feeds) -> None:
        config = nbits.GPTQWeightOnlyQuantConfig(calibration_data_reader=_Rows(samples))
        _by_algorithm(source, output, config, size)

    return work


def searched(size: int) -> Quantizer:
    """Round matrices to 4 bits with the scale of each block that errs least; tables as blocks."""

    def work(source: Path, output: Path, _samples: Feeds) -> None:
        _by_algorithm(source, output, nbits.KQuantWeightOnlyQuantConfig(), size)

    return work


def _by_algorithm(
    source: Path, output: Path, config: nbits.WeightOnlyQuantConfig, size: int
) -> None:
    quantizer = nbits.MatMulNBitsQuantizer(
        _named(onnx.load(source)), block_size=size, algo_config=config
    )
    # It draws its progress where the table goes.
    with contextlib.redirect_stdout(sys.stderr):
        quantizer.process()
    _save(_in_blocks(quantizer.model.model, ("Gather",), 4, size), output)


class _Rows:
    """Calibration samples as GPTQ reads them: by iteration, and copied."""

    def __init__(self, samples: Feeds) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return _rows(self._samples)


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give every node a name: these algorithms know nodes by theirs."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    return model


def _in_blocks(
    model: onnx.ModelProto, operators: tuple[str, ...], bits: int, size: int
) -> onnx.ModelProto:
    quantizer = nbits.MatMulNBitsQuantizer(
        model, bits=bits, block_size=size, op_types_to_quantize=operators
    )
    quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    return made


def _save(model: onnx.ModelProto, output: Path) -> None:
    output.write_bytes(model.SerializeToString())


QUANTIZERS: Mapping[str, Quantizer] = {
    "static QDQ": static(),
    "static QDQ, products": static("Conv", "Gather", "Gemm", "MatMul"),
    "dynamic": dynamic,
    "4 bits / 32, table float32": blocks(4, 32, table=False),
    "4 bits / 32": blocks(4, 32),
    "4 bits / 128": blocks(4, 128),
    "4 bits / 32 HQQ": half_quadratic(4, 32),
    "4 bits / 128 HQQ": half_quadratic(4, 128),
    "4 bits / 32 GPTQ": corrected(32),
    "4 bits / 32 k-quant": searched(32),
    "2 bits / 32": blocks(2, 32),
    "2 bits / 32 HQQ": half_quadratic(2, 32),
}
