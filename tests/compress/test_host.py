"""The memory that a search takes is asked for before it starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgeopt.artifact import Method
from edgeopt.compress.host import free_memory, predict_memory, require_memory
from edgeopt.compress.mixable import mixable_choices
from edgeopt.errors import HostTooSmall
from tests.graphs import deep_model

MEASURE = """
import re, sys
from pathlib import Path
from edgeopt.compress.mixable import mixable_choices
from edgeopt.compress.sensitivity import draw_calibration, measure_sensitivity
from tests.graphs import deep_model

folder = Path(sys.argv[1])
model = deep_model(folder, depth=4, width=1024)
methods = ("float32", "float16", "int8-weights", "int4-blocks", "int2-blocks")
choices = mixable_choices(model, methods, reconstruct=False)
measure_sensitivity(model, choices, draw_calibration(model, None), directory=folder / "harm")
# Not ru_maxrss, which a process inherits from the one that starts it.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
"""


def test_a_machine_with_too_little_memory_is_refused_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    model = deep_model(tmp_path)
    with pytest.raises(HostTooSmall, match=r"may take .*, and 1 MB are free") as caught:
        require_memory(model, {}, free=1_000_000)
    assert caught.value.exit_code == 2
    require_memory(model, {}, free=predict_memory(model, {}))


def test_layers_that_are_fitted_to_samples_take_more(tmp_path: Path) -> None:
    model = deep_model(tmp_path, width=256)
    methods: tuple[Method, ...] = ("float32", "int4-blocks")
    plain, fitted = (
        predict_memory(model, mixable_choices(model, methods, reconstruct=each))
        for each in (False, True)
    )
    assert fitted - plain >= 4 * 8 * 256 * 256


def test_what_a_search_takes_is_below_what_is_predicted(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    model = deep_model(tmp_path, depth=4, width=1024)
    assert int(done.stdout) <= predict_memory(model, {})


def test_free_memory_is_some_of_this_machine() -> None:
    found = free_memory()
    assert found is None or 0 < found < 2**50
