"""Export a torch module to ONNX; runs in a worker, which imports the user's own module."""

import gc
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from edgeopt.errors import ConfigError, ModelError
from edgeopt.model.describe import facts
from edgeopt.model.extra import require_packages
from edgeopt.model.graph import strip_remarks

#: The lowest opset that torch's exporter writes without a conversion.
OPSET = 18


def export_factory(spec: str, search: str, output: str) -> dict[str, object]:
    """Import module:factory from search, call it, write its ONNX to output; return its facts."""
    require_packages("a torch module cannot be exported here", "torch", "onnxscript")
    sys.path.insert(0, search)
    name, _, factory = spec.partition(":")
    try:
        build = getattr(importlib.import_module(name), factory, None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{spec!r} cannot be imported",
            why=f"there is no module {error.name!r}",
            fix=f"run edgeopt in the folder of {name}.py, with its packages installed",
        ) from error
    if not callable(build):
        raise ConfigError(
            f"{spec!r} is not a factory",
            why=f"the module {name!r} has no function {factory!r}",
            fix=f"define {factory}() so that it returns the module and example inputs",
        )
    return facts(_export(build(), output, spec=spec))


def _export(built: Any, output: str, *, spec: str) -> onnx.ModelProto:
    import torch

    module, example = _unpack(built, spec)
    arguments = _named(module, example, spec)
    # What tracing makes is in use up to its end: looking for garbage takes a tenth of the time.
    gc.disable()
    # Nor does it compute anything that threads, which wait for work by turning, could share.
    torch.set_num_threads(1)
    program = torch.onnx.export(
        module.eval(),
        args=(),
        kwargs=arguments,
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    if program is None:
        raise ModelError("torch exported nothing", fix="check the module with torch.export")
    proto: onnx.ModelProto = program.model_proto
    # Every node carries the lines of source it came from, with the paths of this machine.
    strip_remarks(proto)
    Path(output).write_bytes(proto.SerializeToString(deterministic=True))
    return proto


def _unpack(built: Any, spec: str) -> tuple[Any, Any]:
    """Return the torch module and its example inputs."""
    import torch

    if isinstance(built, torch.nn.Module):
        built = (built, getattr(built, "example_inputs", None))
    if isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], torch.nn.Module):
        module, example = built
        example = (example,) if isinstance(example, torch.Tensor) else example
        if isinstance(example, tuple | Mapping) and len(example):
            return module, example
    raise ConfigError(
        f"{spec} returns something else than a torch module with example inputs",
        why=f"it returns {type(built).__name__}",
        fix="return (module, {'input_name': tensor, ...})",
    )


def _named(module: Any, example: Any, spec: str) -> dict[str, Any]:
    """Give each example input the name of forward's parameter."""
    import torch

    names = list(inspect.signature(module.forward).parameters)
    named = (
        dict(example) if isinstance(example, Mapping) else dict(zip(names, example, strict=False))
    )
    wrong = [name for name in named if name not in names]
    if wrong or not all(isinstance(each, torch.Tensor) for each in named.values()):
        raise ConfigError(
            f"the example inputs of {spec} do not fit its module",
            why=f"forward takes tensors named {', '.join(names)}",
            fix="return a dict of exactly those names to tensors",
        )
    return named
