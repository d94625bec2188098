import pytest

from edgeopt.errors import ConfigError
from edgeopt.model.extra import require_packages


def test_a_missing_package_is_named_with_the_command_that_installs_it() -> None:
    require_packages("nothing", "numpy")
    with pytest.raises(ConfigError) as caught:
        require_packages("gradients cannot be taken", "numpy", "no_such_package")
    assert caught.value.what == "gradients cannot be taken"
    assert caught.value.why == "there is no package no_such_package"
    assert "edgeopt[train]" in caught.value.fix
