"""Packages that only some of the work needs: the extra `train`."""

import importlib.util

from edgeopt.artifact import Model
from edgeopt.errors import ConfigError, ModelError


def require_packages(what: str, *names: str) -> None:
    """Refuse with the command to type where a package is missing; what cannot be done says it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                what, why=f"there is no package {name}", fix="pip install 'edgeopt[train]'"
            )


def runs_in_torch(model: Model) -> bool:
    """Tell whether torch is here and has a counterpart of every operator of a model."""
    if importlib.util.find_spec("torch") is None:
        return False
    import onnx

    from edgeopt.model.torch_graph import TorchGraph

    try:
        TorchGraph(onnx.load(model.path))
    except ModelError:
        return False
    return True
