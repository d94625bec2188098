"""The device program reads power sensors: boards here are folders in the place of /sys."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeopt.cli.places import cache_folder
from edgeopt.program import ProgramReport, parse_report
from tests.host.runner_kit import Built, build_native
from tests.host.test_conditions import command, write_tree

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_native(cache_folder(), tmp_path_factory.mktemp("native"))


def rails(**rails: tuple[int, int]) -> dict[str, str]:
    """Return the files of an INA3221, by rail: millivolts and milliamperes."""
    files = {"name": "ina3221"}
    for number, (label, (volts, amperes)) in enumerate(rails.items(), 1):
        files |= {
            f"in{number}_label": label,
            f"in{number}_input": str(volts),
            f"curr{number}_input": str(amperes),
        }
    return files


def chips(*each: dict[str, str]) -> dict[str, str]:
    return {
        f"class/hwmon/hwmon{number}/{name}": text
        for number, files in enumerate(each)
        for name, text in files.items()
    }


def run(
    native: Built,
    folder: Path,
    system: Path,
    *options: str,
    iterations: int = 100_000,
    meanwhile: Callable[[], object] = lambda: None,
) -> ProgramReport:
    """Run the program; something happens once it has been at rest, before it draws most."""
    argv = command(native, folder, system, "--iterations", str(iterations), *options)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    # The first output is written by the first timed inference.
    while not (folder / "out" / "0.npy").exists() and time.monotonic() < until:
        time.sleep(0.001)
    meanwhile()
    said, failed = process.communicate(timeout=120)
    assert process.returncode == 0, failed
    return parse_report(said, {"iterations": iterations, "threads": 1})


JETSON = rails(VDD_CPU_GPU_CV=(5000, 300), VDD_IN=(5000, 1000), VDD_SOC=(5000, 200))
OTHERS = (
    {"name": "amdgpu", "power1_average": "90000000"},
    {"name": "k10temp", "power1_input": "65000000", "temp1_input": "40000"},
)


def test_the_rail_that_feeds_the_others_is_read_and_constant_power_is_energy_over_time(
    native: Built, tmp_path: Path
) -> None:
    system = write_tree(tmp_path / "sys", chips(OTHERS[0], JETSON, OTHERS[1]))
    report = run(native, tmp_path, system, "--energy-ms", "600")
    energy = report.energy
    assert report.sensor == "ina3221 VDD_IN"
    assert energy is not None
    assert energy.idle_uw == pytest.approx(5_000_000, rel=1e-5)
    assert energy.drawn_uj == pytest.approx(5e6 * energy.duration_ns / 1e9, rel=1e-5)
    assert energy.duration_ns >= 600_000_000
    # The first, the last, and between them ten a second where the machine has the time.
    assert 3 <= energy.readings <= energy.duration_ns / 1e8 + 3
    assert energy.inferences > 100


@pytest.mark.parametrize("name", ["power1_input", "power1_average"])
def test_what_is_drawn_at_rest_is_told_apart_from_what_the_model_adds(
    native: Built, tmp_path: Path, name: str
) -> None:
    chip = {"name": "ina226" if name == "power1_input" else "power_meter"}
    system = write_tree(tmp_path / "sys", chips(chip | {name: "2000000"}))
    later = tmp_path / "later"
    later.write_text("6000000\n")
    file = system / "class/hwmon/hwmon0" / name
    options = ("--energy-ms", "500")
    report = run(native, tmp_path, system, *options, meanwhile=lambda: later.rename(file))
    energy = report.energy
    assert energy is not None
    assert energy.idle_uw == pytest.approx(2_000_000, rel=1e-5)
    assert energy.joules_above_idle == pytest.approx(energy.joules * 4 / 6, rel=1e-4)


@pytest.mark.parametrize("files", [(), OTHERS, (rails(VDD_IN=(0, 0)),)])
def test_without_a_sensor_of_the_supply_there_is_no_figure(
    native: Built, tmp_path: Path, files: tuple[dict[str, str], ...]
) -> None:
    system = write_tree(tmp_path / "sys", chips(*files))
    report = run(native, tmp_path, system, "--energy-ms", "200")
    assert (report.sensor, report.energy) == (None, None)


def test_a_sensor_that_goes_away_leaves_no_figure(native: Built, tmp_path: Path) -> None:
    system = write_tree(tmp_path / "sys", chips(JETSON))
    file = system / "class/hwmon/hwmon0/curr2_input"
    report = run(native, tmp_path, system, "--energy-ms", "200", meanwhile=file.unlink)
    assert (report.sensor, report.energy) == ("ina3221 VDD_IN", None)


def test_a_sensor_that_goes_away_under_load_leaves_no_figure(native: Built, tmp_path: Path) -> None:
    system = write_tree(tmp_path / "sys", chips(JETSON))

    def pull() -> None:
        # Three inferences take no time: it is under load by now, for three seconds.
        time.sleep(0.5)
        (system / "class/hwmon/hwmon0/curr2_input").unlink()

    options = ("--energy-ms", "3000")
    report = run(native, tmp_path, system, *options, iterations=3, meanwhile=pull)
    assert (report.sensor, report.energy) == ("ina3221 VDD_IN", None)


def test_the_sensor_is_named_and_not_watched_where_energy_is_not_asked_for(
    native: Built, tmp_path: Path
) -> None:
    label = {"in1_label": "\x1b[2Jrail", "name": "ina219", "power1_input": "1000000"}
    report = run(native, tmp_path, write_tree(tmp_path / "sys", chips(label)))
    assert (report.sensor, report.energy) == ("ina219 ?[2Jrail", None)
