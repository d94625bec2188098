"""Take in a model: an ONNX file, or a torch module named by its factory."""

import re
import shutil
from pathlib import Path

from pydantic import TypeAdapter

from edgeopt.artifact import Fact, Model, TensorSpec
from edgeopt.errors import ConfigError
from edgeopt.model.guard import External, check_external, check_model_file
from edgeopt.model.isolate import run_isolated
from edgeopt.store import digest_file

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class ExternalData(Fact):
    """What a model file says of the data that lies in other files."""

    entries: tuple[External, ...]


def load_model(spec: str, *, directory: Path, search: Path) -> Model:
    """Copy or export the model that spec names into directory, as one file without other data.

    spec is the path of an .onnx file, relative to search, or "module:factory": the module is
    imported from search, and factory() returns either (module, example) or a torch module that
    has an attribute example_inputs. The example is a dict of input names to tensors, or a tuple
    of tensors in the order of forward's parameters, which then give the names.

    Dimensions that the file leaves open are -1 in the model's shapes until it is normalized.
    """
    directory.mkdir(parents=True, exist_ok=True)
    output = directory.resolve() / "loaded.onnx"
    if _FACTORY.fullmatch(spec):
        request = {"spec": spec, "search": str(search.resolve()), "output": str(output)}
        reply = run_isolated("export", request, directory=directory)
        return read_model(check_model_file(output), reply, provenance=(spec,))
    if not spec.endswith(".onnx"):
        raise ConfigError(
            f"{spec!r} does not name a model",
            why="a model is an .onnx file or a torch factory",
            fix="write model.onnx, or module:factory",
        )
    source = check_model_file(search / spec)
    entries = find_external(source, directory=directory).entries
    check_external(entries, source.parent)
    if entries:
        request = {"path": str(source), "output": str(output)}
        run_isolated("inline", request, directory=directory)
    else:
        shutil.copyfile(source, output)
    return _describe(output, directory, name=Path(spec).name)


def find_external(path: Path, *, directory: Path) -> ExternalData:
    """Read which data outside its own file a model names; none of it is opened or checked."""
    reply = run_isolated("describe", {"path": str(path)}, directory=directory)
    return ExternalData(
        entries=TypeAdapter(tuple[External, ...]).validate_python(reply["external"])
    )


def _describe(path: Path, directory: Path, *, name: str) -> Model:
    """Return the facts of a file that needs no other."""
    check_model_file(path)
    return read_model(
        path,
        run_isolated("describe", {"path": str(path)}, directory=directory),
        provenance=(name,),
    )


def read_model(path: Path, reply: dict[str, object], *, provenance: tuple[str, ...]) -> Model:
    """Make a Model of a file and of what a worker said of it."""
    specs = TypeAdapter(tuple[TensorSpec, ...])
    return Model(
        path=path,
        sha256=digest_file(path),
        inputs=specs.validate_python(reply["inputs"]),
        outputs=specs.validate_python(reply["outputs"]),
        parameters=TypeAdapter(int).validate_python(reply["parameters"]),
        provenance=provenance,
    )
