"""Packages that only some of the work needs: the extra `train`."""

import importlib.util

from edgeopt.errors import ConfigError


def require_packages(what: str, *names: str) -> None:
    """Refuse with the command to type where a package is missing; what cannot be done says it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                what, why=f"there is no package {name}", fix="pip install 'edgeopt[train]'"
            )
