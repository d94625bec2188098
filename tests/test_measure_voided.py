"""What happens to a board while it measures, and whether its figures count."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import pytest

from edgeopt import program
from edgeopt.artifact import Measurement
from edgeopt.board import Completed
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import stage_bundle
from edgeopt.errors import MeasurementNoisy
from edgeopt.measure import disturbances, measure_release, require_steady
from tests.board.test_state import provide_vcgencmd, write
from tests.board.wrapped import Wrapped
from tests.deploy.kit import APP, board_facts, make_bundle, samples_of


@dataclass
class Eventful(Wrapped):
    """This machine, where something happens right after the program has run."""

    event: Callable[[], object]
    #: What the board says its boot is from then on; None: what it is.
    boot: str | None = None
    over: bool = False

    def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float) -> Completed:
        done = self.inner.run(argv, stdin=stdin, timeout=timeout)
        if any(program._RUN in each for each in argv):
            self.event()
            self.over = True
        elif self.over and self.boot is not None:
            said = re.sub(rb"(?m)^boot .*$", f"boot {self.boot}".encode(), done.stdout)
            return replace(done, stdout=said)
        return done

    def put(self, local: Path, remote: PurePosixPath, *, offset: int = 0, timeout: float) -> None:
        self.inner.put(local, remote, offset=offset, timeout=timeout)

    def get(self, remote: PurePosixPath, local: Path, *, limit: int, timeout: float) -> None:
        self.inner.get(remote, local, limit=limit, timeout=timeout)


def measure(
    folder: Path,
    event: Callable[[], object] = lambda: None,
    *,
    boot: str | None = None,
    mode: str = "good",
) -> Measurement:
    bundle = make_bundle(folder / "bundle", mode=mode)
    root = PurePosixPath(folder / "board")
    release = stage_bundle(bundle, LocalBoard(), facts=board_facts(), app=APP, root=root)
    measurement, _ = measure_release(
        release,
        bundle,
        Eventful(LocalBoard(), event, boot),
        feeds={"x": samples_of(3)},
        warmup=1,
        iterations=5,
        threads=1,
        directory=folder / "work",
    )
    return measurement


@pytest.mark.parametrize(
    ("boot", "reasons"),
    [
        (None, ()),
        ("6f1c7a52-0000-4000-8000-000000000000", ("the board rebooted during the measurement",)),
        ("", ("the board does not tell whether it rebooted",)),
    ],
)
def test_a_board_that_restarted_or_does_not_tell_has_no_figure(
    tmp_path: Path, boot: str | None, reasons: tuple[str, ...]
) -> None:
    measurement = measure(tmp_path, boot=boot)
    assert measurement.invalid == reasons
    if reasons:
        with pytest.raises(MeasurementNoisy, match=reasons[0]):
            require_steady(measurement)
    if boot:
        # The figures, such as they are, are of the boot that ended them.
        assert measurement.boot_id == boot


def test_flags_that_only_the_boards_own_program_tells_spoil_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPT_SYS", str(tmp_path / "sys"))
    flags = tmp_path / "flags"
    flags.write_text("throttled=0x50000\n")
    provide_vcgencmd(tmp_path / "bin", monkeypatch, f'cat "{flags}"')
    quiet = measure(tmp_path / "quiet", mode="mute")
    # Set since boot, and so before: nothing has happened.
    assert (quiet.invalid, quiet.before.throttled) == ((), "0x50000")
    hot = measure(tmp_path / "hot", lambda: flags.write_text("throttled=0xd0008\n"), mode="mute")
    assert hot.invalid == ("throttled or short of voltage during the run (0xd0008)",)
    assert (hot.before.throttled, hot.after.throttled) == ("0x50000", "0xd0008")


def test_what_is_found_of_the_clock_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPT_SYS", str(tmp_path / "sys"))
    policy = tmp_path / "sys/devices/system/cpu/cpufreq/policy0"
    names = ("scaling_governor", "scaling_max_freq", "scaling_min_freq", "scaling_setspeed")
    for name in names:
        write(policy / name, "powersave" if name == "scaling_governor" else "600000", mode=0o666)
    before = {name: (policy / name).stat().st_ctime_ns for name in names}
    measurement = measure(tmp_path / "run")
    assert {path.name: path.stat().st_ctime_ns for path in policy.iterdir()} == before
    said = disturbances(measurement.model_copy(update={"kind": "board"}))
    assert "governor powersave: not controlled" in said


def test_a_governor_that_changes_meanwhile_spoils_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPT_SYS", str(tmp_path / "sys"))
    governor = tmp_path / "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"
    write(governor, "performance")
    assert measure(tmp_path / "quiet").around.governors_after == ("performance",)
    changed = measure(tmp_path / "changed", lambda: write(governor, "powersave"))
    assert changed.invalid == ("the governor changed to powersave",)
