"""Take in a model: an ONNX file, or a torch module named by its factory."""

import re
import shutil
from pathlib import Path

from pydantic import TypeAdapter

from edgeopt.artifact import Fact, Model, TensorSpec
from edgeopt.errors import ConfigError, ModelError
from edgeopt.model.guard import External, check_external, check_model_file
from edgeopt.model.isolate import Standby, run_isolated
from edgeopt.store import digest_file

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Description(Fact):
    """What a model file says of itself, and of the data that lies in other files."""

    sha256: str
    external: tuple[External, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    #: Number of trained values.
    parameters: int


def load_model(
    spec: str,
    *,
    directory: Path,
    search: Path,
    described: Description | None = None,
    standby: Standby | None = None,
) -> Model:
    """Copy or export the model that spec names into directory, as one file without other data.

    spec is the path of an .onnx file, relative to search, or "module:factory": the module is
    imported from search, and factory() returns either (module, example) or a torch module that
    has an attribute example_inputs. The example is a dict of input names to tensors, or a tuple
    of tensors in the order of forward's parameters, which then give the names. described: what is
    known of a file; it counts while the file is the same. standby: workers that may be waiting.

    Dimensions that the file leaves open are -1 in the model's shapes until it is normalized.
    """
    directory.mkdir(parents=True, exist_ok=True)
    output = directory.resolve() / "loaded.onnx"
    if _FACTORY.fullmatch(spec):
        request = {"spec": spec, "search": str(search.resolve()), "output": str(output)}
        reply = run_isolated("export", request, directory=directory, standby=standby)
        return read_model(check_model_file(output), reply, provenance=(spec,))
    if not spec.endswith(".onnx"):
        raise ConfigError(
            f"{spec!r} does not name a model",
            why="a model is an .onnx file or a torch factory",
            fix="write model.onnx, or module:factory",
        )
    source = check_model_file(search / spec)
    if described is None:
        described = describe_model(source, directory=directory)
    check_external(described.external, source.parent)
    if described.external:
        request = {"path": str(source), "output": str(output)}
        run_isolated("inline", request, directory=directory)
    else:
        shutil.copyfile(source, output)
    check_model_file(output)
    copied = digest_file(output)
    if described.external:
        described = describe_model(output, directory=directory, digest=copied)
    elif copied != described.sha256:
        raise ModelError(f"{source} changes while it is read", fix="run again once it is written")
    return Model(
        path=output,
        sha256=copied,
        inputs=described.inputs,
        outputs=described.outputs,
        parameters=described.parameters,
        provenance=(Path(spec).name,),
    )


def describe_model(path: Path, *, directory: Path, digest: str | None = None) -> Description:
    """Read what a model file says; none of the data that it names is opened or checked.

    digest: the file's, where it is known.
    """
    own = digest_file(path) if digest is None else digest
    reply = run_isolated("describe", {"path": str(path)}, directory=directory)
    return TypeAdapter(Description).validate_python({"sha256": own, **reply})


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
