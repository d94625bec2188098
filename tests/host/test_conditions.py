"""The device program reads the board's state: boards here are folders in the place of /sys."""

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from edgeopt.cli.places import cache_folder
from edgeopt.measure import condition_problems
from edgeopt.program import ProgramReport, parse_report
from tests.host.runner_kit import Built, build_native, save_samples

pytestmark = pytest.mark.host

#: What the kernel of a Raspberry Pi shows, as of 6.6: a Pi 4, and a 5 whose bus has an address.
FLAGS = (
    "devices/platform/soc/soc:firmware/get_throttled",
    "devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled",
)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_native(cache_folder(), tmp_path_factory.mktemp("native"))


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


def write_board(
    folder: Path, *, flags: str = "0", khz: int = 1_500_000, milli: int = 48_000, file: str = ""
) -> Path:
    """Write /sys of a board with one processor, two zones of it, and one of something else."""
    return write_tree(
        folder,
        {
            "class/thermal/thermal_zone0/type": "cpu-thermal",
            "class/thermal/thermal_zone0/temp": str(milli - 3000),
            "class/thermal/thermal_zone1/type": "battery",
            "class/thermal/thermal_zone1/temp": "90000",
            "class/thermal/thermal_zone2/type": "soc-thermal",
            "class/thermal/thermal_zone2/temp": str(milli),
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": str(khz),
            file or FLAGS[0]: flags,
        },
    )


def command(native: Built, folder: Path, system: Path, *options: str) -> tuple[str, ...]:
    save_samples(folder / "ids.npy", seed=0)
    return (
        *("env", f"EDGEOPT_SYS={system}", *native.command),
        *("--weights", str(native.folder / "weights.bin"), "--input", str(folder / "ids.npy")),
        *("--samples", "3", "--output", str(folder / "out"), *options),
    )


def run(native: Built, folder: Path, system: Path) -> ProgramReport:
    argv = command(native, folder, system, "--iterations", "3")
    done = dataclasses.replace(native, command=argv).run()
    assert done.returncode == 0, done.stderr
    return parse_report(done.stdout.encode(), {"iterations": 3, "threads": 1})


@pytest.mark.parametrize("file", FLAGS)
def test_the_hottest_zone_of_the_processor_its_clock_and_the_flags_are_read(
    native: Built, tmp_path: Path, file: str
) -> None:
    report = run(native, tmp_path, write_board(tmp_path / "sys", flags="50005", file=file))
    for each in (report.before, report.after):
        assert (each.temperature_c, each.throttled) == (48.0, "0x50005")
        assert each.frequency_khz == (1_500_000,)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {
            "class/thermal/thermal_zone0/type": "cpu-thermal",
            "class/thermal/thermal_zone0/temp": "warm",
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "<unknown>",
            FLAGS[0]: "none",
        },
    ],
)
def test_what_a_board_does_not_tell_stays_unknown(
    native: Built, tmp_path: Path, files: dict[str, str]
) -> None:
    report = run(native, tmp_path, write_tree(tmp_path / "sys", files))
    for each in (report.before, report.after):
        assert (each.temperature_c, each.frequency_khz, each.throttled) == (None, (), None)


@pytest.mark.parametrize(
    ("flags", "khz", "problems"),
    [
        ("0", 1_500_000, []),
        ("50000", 1_500_000, ["throttled or short of voltage during the run (0x50000 new)"]),
        ("0", 600_000, ["the clock fell from 1500 MHz to 600 MHz"]),
    ],
)
def test_a_board_that_throttles_while_the_model_runs_spoils_the_figures(
    native: Built, tmp_path: Path, flags: str, khz: int, problems: list[str]
) -> None:
    """The state is looked at before the first inference and after the last, and not at once."""
    (tmp_path / "sys").symlink_to(write_board(tmp_path / "cold"))
    hot = write_board(tmp_path / "hot", flags=flags, khz=khz, milli=85_000)
    argv = command(native, tmp_path, tmp_path / "sys", "--iterations", "300000")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # The first output is written by the first timed inference.
    until = time.monotonic() + 60
    while not (tmp_path / "out" / "0.npy").exists() and time.monotonic() < until:
        time.sleep(0.001)
    (tmp_path / "later").symlink_to(hot)
    (tmp_path / "later").rename(tmp_path / "sys")
    said, failed = process.communicate(timeout=120)
    assert process.returncode == 0, failed
    report = parse_report(said, {"iterations": 300_000, "threads": 1})
    assert (report.before.temperature_c, report.after.temperature_c) == (48.0, 85.0)
    assert condition_problems(report.before, report.after) == problems


@pytest.mark.parametrize(("quota", "threads"), [("max 100000", 2), ("100000 100000", 1)])
def test_a_container_with_the_time_of_one_core_gets_one_thread(
    native: Built, tmp_path: Path, quota: str, threads: int
) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core here; run: on a machine with two")
    system = write_tree(tmp_path / "sys", {"fs/cgroup/cpu.max": quota})
    argv = command(native, tmp_path, system, "--iterations", "3", "--threads", "2")
    done = subprocess.run(argv, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["threads"] == threads


@pytest.mark.parametrize("fast", [0, 1])
def test_one_thread_that_may_choose_runs_on_the_faster_core(
    native: Built, tmp_path: Path, fast: int
) -> None:
    """Named by its capacity; a quota of one core leaves one thread of the two that were asked."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) != 2:
        pytest.skip("this needs two cores; run: taskset -c 0,1 pytest")
    speeds = {
        f"devices/system/cpu/cpu{cpu}/cpu_capacity": "1024" if index == fast else "446"
        for index, cpu in enumerate(allowed)
    }
    system = write_tree(tmp_path / "sys", speeds | {"fs/cgroup/cpu.max": "100000 100000"})
    argv = command(native, tmp_path, system, "--iterations", "3", "--threads", "2")
    done = subprocess.run(argv, capture_output=True, check=True, timeout=60)
    assert json.loads(done.stdout)["process"]["cpus"] == str(allowed[fast])
