"""Bring a model into the one form that every later stage expects."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from edgeopt.artifact import Model, TensorSpec
from edgeopt.errors import ConfigError, ModelError
from edgeopt.model.isolate import Standby, run_isolated
from edgeopt.model.load import read_model

#: Lower ones lack LayerNormalization and write what is now an input as an attribute.
LOWEST_OPSET = 17

_CONVERTED = "converted.onnx"
_SHAPE = re.compile(r"([^=]+)=([0-9]+(?:x[0-9]+)*)?")


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read one --shape option.

    >>> parse_shape("input_ids=1x32"), parse_shape("rate=")
    (('input_ids', (1, 32)), ('rate', ()))
    """
    match = _SHAPE.fullmatch(text)
    shape = tuple(int(each) for each in match[2].split("x")) if match and match[2] else ()
    if match is None or 0 in shape:
        raise ConfigError(
            f"{text!r} is not an input's shape",
            why="a shape is the input's name and its dimensions, all above zero",
            fix="write --shape input_ids=1x32",
        )
    return match[1], shape


def normalize_model(
    model: Model,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, float] | None = None,
    outputs: Sequence[str] = (),
    directory: Path,
    standby: Standby | None = None,
) -> Model:
    """Write directory/normalized.onnx: fixed shapes, constants folded, no external data.

    Shapes replace dimensions by position. An input that values names is filled with that value
    and is no input any more (a sample rate, say). Where outputs are named, only these are kept, in
    that order, with what they are computed of. The outputs
    on three seeded inputs are those of the original within 1e-4 of the largest value. The
    same model gives the same bytes. standby: workers that may be waiting for this. Raises
    ConfigError when a shape is missing or does not fit, ModelError when the model cannot run.
    """
    values = dict(values or {})
    check_shapes(model.inputs, shapes, values)
    check_outputs(model.outputs, outputs)
    directory.mkdir(parents=True, exist_ok=True)
    output = directory.resolve() / "normalized.onnx"
    original = model.path.resolve()
    request: dict[str, object] = {
        "path": str(original),
        "original": str(original),
        "output": str(output),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "values": values,
        "outputs": list(outputs),
    }
    reply = run_isolated(
        "normalize", {**request, "lowest": LOWEST_OPSET}, directory=directory, standby=standby
    )
    if "opset" in reply:
        request["path"] = str(_converted(original, directory))
        reply = run_isolated("normalize", request, directory=directory)
        (directory / _CONVERTED).unlink(missing_ok=True)
    TypeAdapter(float).validate_python(reply.pop("difference"))
    normalized = read_model(output, reply, provenance=(*model.provenance, "normalized"))
    if not normalized.inputs:
        raise ModelError(
            "the model has no inputs",
            why="its outputs never change, so there is nothing to run",
            fix="export it with an input, or make fewer of them constant (--value)",
        )
    return normalized


def check_shapes(
    inputs: tuple[TensorSpec, ...],
    shapes: Mapping[str, tuple[int, ...]],
    values: Iterable[str] = (),
) -> None:
    """Refuse shapes that are missing, that name no input or that contradict the model."""
    known = {each.name: each for each in inputs}
    unknown = [name for name in (*shapes, *values) if name not in known]
    if unknown:
        raise ConfigError(
            f"the model has no input named {', '.join(unknown)}",
            why=f"its inputs are {', '.join(known)}",
            fix="correct the name that was given",
        )
    open_inputs = [each for each in inputs if -1 in each.shape and each.name not in shapes]
    if open_inputs:
        raise ConfigError(
            "the model leaves the shape of its inputs open",
            why="; ".join(f"{each.name} is {_written(each.shape)}" for each in open_inputs),
            fix="add " + " ".join(f"--shape {_suggested(each)}" for each in open_inputs),
        )
    for name, shape in shapes.items():
        own = known[name].shape
        if len(own) != len(shape) or any(
            fixed not in (-1, size) for fixed, size in zip(own, shape, strict=True)
        ):
            raise ConfigError(
                f"--shape {name}={'x'.join(map(str, shape))} contradicts the model",
                why=f"there {name} is {_written(own)}",
                fix=f"write --shape {_suggested(known[name])}",
            )


def check_outputs(known: tuple[TensorSpec, ...], outputs: Sequence[str]) -> None:
    """Refuse outputs that the model does not have, or that are named twice."""
    names = [each.name for each in known]
    unknown = [each for each in outputs if each not in names or list(outputs).count(each) > 1]
    if unknown:
        raise ConfigError(
            f"the model has no output named {', '.join(dict.fromkeys(unknown))}, or it is named"
            " twice",
            why=f"its outputs are {', '.join(names)}",
            fix="correct `outputs` in edgeopt.toml",
        )


def _written(shape: tuple[int, ...]) -> str:
    """Print a shape with its open dimensions as question marks."""
    return "x".join("?" if size == -1 else str(size) for size in shape) or "a scalar"


def _suggested(spec: TensorSpec) -> str:
    """Return a complete option: batch 1, and 32 where nothing better is known."""
    sizes = [
        str(size if size != -1 else 1 if place == 0 else 32)
        for place, size in enumerate(spec.shape)
    ]
    return f"{spec.name}={'x'.join(sizes)}"


def _converted(original: Path, directory: Path) -> Path:
    """Return the model in a higher opset, or as it is where onnx's converter fails."""
    target = directory.resolve() / _CONVERTED
    request = {"path": str(original), "output": str(target), "opset": LOWEST_OPSET}
    try:
        run_isolated("convert", request, directory=directory)
    except ModelError:
        return original
    return target
