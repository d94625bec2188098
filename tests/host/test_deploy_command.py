"""edgeopt deploy as a user types it, on this machine and through a real OpenSSH server."""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeopt.board.lease import read_tenancy
from edgeopt.board.local import LocalBoard
from edgeopt.trial import ROOT
from tests.conftest import Sshd
from tests.tiny import write_tiny

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]

Done = subprocess.CompletedProcess[str]


class User:
    """Somebody with a home of their own, who types commands in a project."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.project = write_tiny(home / "project")
        self.ssh_config: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"HOME": str(self.home)}

    def argv(self, *arguments: str) -> list[str]:
        options: list[str] = []
        if self.ssh_config is not None:
            options = ["--board", "board", "--ssh-config", str(self.ssh_config)]
        verb, *rest = arguments
        return [sys.executable, "-m", "edgeopt", verb, "--target", "x86-64", *options, *rest]

    def types(self, *arguments: str) -> Done:
        return subprocess.run(
            self.argv(*arguments),
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def current(self) -> str:
        """What the board would run now: the digest in the link, or nothing."""
        link = self.home / ".edgeopt" / "apps" / "tiny" / "current"
        return link.readlink().name if link.is_symlink() else ""


@pytest.fixture(autouse=True)
def _shared_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share what is slow to build; HOME differs for each user of the tests."""
    from edgeopt.cli.places import cache_folder

    monkeypatch.setenv("EDGEOPT_CACHE_DIR", str(cache_folder()))


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def report_of(done: Done) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_a_first_deploy_keeps_the_release_and_a_second_one_makes_nothing_again(user: User) -> None:
    first = report_of(user.types("deploy", "--json"))
    assert first["kept"] is True
    assert user.current() == first["digest"]
    again = user.types("deploy", "--json")
    second = report_of(again)
    assert second["digest"] == first["digest"]
    stages = [stage for stage in second["stages"] if stage["name"] != "measure"]  # type: ignore[attr-defined]
    assert stages
    assert all(stage["cached"] for stage in stages), again.stderr


def test_the_report_shows_what_was_measured_on_the_board(user: User) -> None:
    report = report_of(user.types("deploy", "--json", "--profile", "float16"))
    assert report["kind"] == "native"
    rows = {row["plan"]: row for row in report["rows"]}  # type: ignore[attr-defined]
    assert set(rows) == {"float32", "float16"}
    for row in rows.values():
        predicted = sum(row["footprint"][k] for k in ("weights_resident", "arena", "runtime"))
        measured = row["measurement"]["memory"]["peak"]
        assert abs(predicted - measured) < 0.05 * measured + 300_000
        assert row["parity"]["max_rel"] < 1e-4
        assert row["parity"]["metric_samples"] == 100
    page = (user.project / ".edgeopt" / "reports" / "x86-64.html").read_text()
    assert page.count("<svg") == 3


def test_energy_is_measured_where_the_board_has_a_sensor_and_else_is_said_not_to_be(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEOPT_SYS", str(tmp_path / "sys"))
    assert "energy: not measured: the board has no power sensor" in user.types("deploy").stdout
    chip = tmp_path / "sys/class/hwmon/hwmon3"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina260\n")
    (chip / "power1_input").write_text("4200000\n")
    done = user.types("deploy", "--no-reference", "--json")
    seen = report_of(done)["rows"][0]["measurement"]  # type: ignore[index]
    assert (seen["sensor"], seen["energy"]["idle_uw"]) == ("ina260", 4_200_000)
    drawn, seconds = (seen["energy"][name] for name in ("drawn_uj", "duration_ns"))
    assert drawn == pytest.approx(4.2e6 * seconds / 1e9, rel=1e-5)


def test_a_bundle_built_twice_is_the_same_to_the_byte(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, seed in (("one", "1"), ("two", "2")):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        done = user.types("compile", "--fresh", "--profile", "float16", "--output", folder)
        assert done.returncode == 0, done.stderr
    one, two = (
        {path.name: path.read_bytes() for path in (user.project / folder).iterdir()}
        for folder in ("one", "two")
    )
    assert {"edgeopt-run", "model.so", "weights.bin", "manifest.json", "model.onnx"} == set(one)
    assert one == two


def test_an_infeasible_budget_sends_nothing_and_names_what_would_do(user: User) -> None:
    done = user.types("deploy", "--ram", "1MB")
    assert done.returncode == 3
    assert "--ram" in done.stderr.partition("fix:")[2]
    assert not (user.home / ".edgeopt").exists()
    enough = done.stderr.partition("--ram ")[2].split()[0]
    assert user.types("deploy", "--ram", enough).returncode == 0


def test_a_limit_that_the_board_breaks_keeps_the_previous_release(user: User) -> None:
    first = report_of(user.types("deploy", "--json"))
    refused = user.types("deploy", "--profile", "float16", "--latency", "1ns")
    assert refused.returncode == 3
    # What was measured of kernels says that no plan is fast enough, also to a plan from now on.
    assert "the limit on latency binds" in refused.stderr
    planned = user.types("plan", "--latency", "1ns")
    assert (planned.returncode, "latency binds" in planned.stderr) == (3, True)
    assert user.types("plan", "--latency", "1min").returncode == 0
    assert user.current() == first["digest"]
    status = user.types("status")
    assert str(first["digest"])[:12] in status.stdout
    assert "signature none" in status.stdout


def test_kernels_are_measured_once_and_say_before_it_runs_how_long_a_plan_takes(user: User) -> None:
    profile = ("--profile", "int8", "--latency", "10s")
    first = user.types("deploy", *profile, "--json")
    # A machine that is busy now ends it with 12, after the plan was chosen and run.
    assert first.returncode in (0, 12), first.stderr
    report = json.loads(first.stdout)
    names = [stage["name"] for stage in report["stages"]]
    assert names.count("times") == 1
    (latency,) = [each for each in report["checks"] if each["name"] == "latency p95"]
    # A busy machine takes longer, but no three times as long.
    assert latency["predicted"] / 3 < latency["measured"] < 3 * latency["predicted"]
    again = user.types("deploy", *profile, "--json")
    assert again.returncode in (0, 12), again.stderr
    assert "times" not in [stage["name"] for stage in json.loads(again.stdout)["stages"]]


def test_rollback_returns_to_the_release_before_and_history_tells(user: User) -> None:
    first = report_of(user.types("deploy", "--json"))
    second = report_of(user.types("deploy", "--json", "--profile", "float16"))
    assert first["digest"] != second["digest"]
    assert user.types("rollback").returncode == 0
    assert user.current() == first["digest"]
    actions = [line.split()[2] for line in user.types("history").stdout.splitlines()]
    assert actions == ["deploy", "deploy", "rollback"]
    assert user.types("status", "--check").stdout.count("good") == 1


def test_an_operator_that_cannot_be_compiled_is_named_before_anything_is_sent(user: User) -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], name="the_determinant")],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (user.project / "edgeopt.toml").unlink()
    onnx.save(model, user.project / "odd.onnx")
    done = user.types("deploy", "--model", "odd.onnx")
    assert done.returncode == 9, done.stderr
    assert "Det" in done.stderr
    assert "the_determinant" in done.stderr


def test_deploy_works_through_a_plain_ssh_server(user: User, sshd: Sshd) -> None:
    user.ssh_config = sshd.write_config(user.home / "ssh_config")
    root = Path.home() / ".edgeopt" / "apps" / "tiny"
    report = report_of(user.types("deploy", "--json"))
    assert (report["kind"], report["board"]) == ("board", "board")
    assert (root / "current").readlink().name == report["digest"]
    assert user.types("status").stdout.startswith("tiny on board: ready")


def test_an_unknown_host_key_is_refused(user: User, sshd: Sshd) -> None:
    user.ssh_config = sshd.write_config(user.home / "ssh_config", known="")
    done = user.types("deploy")
    assert done.returncode == 6
    assert "host key is unknown" in done.stderr


def test_killing_deploy_at_any_moment_leaves_a_whole_release_and_a_rerun_converges(
    user: User,
) -> None:
    old = str(report_of(user.types("deploy", "--json"))["digest"])
    new = str(report_of(user.types("deploy", "--json", "--profile", "float16"))["digest"])
    moments = random.Random(0)
    for _ in range(6):
        assert user.types("rollback").returncode == 0
        assert user.current() == old
        process = subprocess.Popen(
            user.argv("deploy", "--profile", "float16", "--no-reference"),
            cwd=user.project,
            env=user.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(moments.uniform(0.2, 3.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert user.current() in {old, new}
        assert user.types("status", "--check").stdout.count("good") == 1
        rerun = user.types("deploy", "--profile", "float16", "--no-reference")
        assert rerun.returncode == 0, rerun.stderr
        assert user.current() == new


def test_a_second_ctrl_c_is_not_needed(user: User) -> None:
    user.types("deploy")
    process = subprocess.Popen(
        user.argv("deploy", "--fresh"),
        cwd=user.project,
        env=user.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Under way, however long a busy machine takes to start it.
    assert process.stderr is not None
    assert process.stderr.readline()
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - begun < 15
    assert process.returncode == 130, said
    tenancy = read_tenancy(LocalBoard(home=user.home), ROOT)
    assert (tenancy.owner.held, tenancy.processes) == (False, ())
    assert "Traceback" not in said


def test_a_model_without_a_project_file_is_asked_about_by_its_report(user: User) -> None:
    (user.project / "edgeopt.toml").unlink()
    digest = report_of(user.types("deploy", "--json", "--model", "tiny.onnx"))["digest"]
    status = user.types("status")
    assert status.returncode == 0, status.stderr
    assert str(digest)[:12] in status.stdout


def test_external_data_that_changed_is_read_again(user: User) -> None:
    import onnx

    model = onnx.load(user.project / "tiny.onnx")
    onnx.save(model, user.project / "tiny.onnx", save_as_external_data=True, location="tiny.bin")
    first = report_of(user.types("deploy", "--json"))
    data = user.project / "tiny.bin"
    data.write_bytes(bytes(reversed(data.read_bytes()[:64])) + data.read_bytes()[64:])
    second = user.types("deploy", "--json", "--no-reference")
    assert json.loads(second.stdout).get("digest") != first["digest"]


def test_two_deploys_at_once_do_not_disturb_each_other(user: User) -> None:
    user.types("deploy")
    both = [
        subprocess.Popen(
            user.argv("deploy", "--fresh"),
            cwd=user.project,
            env=user.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [each.communicate(timeout=300)[1] for each in both]
    # Whoever comes first deploys; the other is refused, unless it comes when that is over.
    assert sorted(each.returncode for each in both) in ([0, 0], [0, 8]), said
    assert user.types("status", "--check").stdout.count("good") == 1


def test_a_release_is_kept_and_shown_where_its_report_cannot_be(user: User) -> None:
    (user.project / ".edgeopt").write_text("not a folder")
    done = user.types("deploy", "--json", "--no-reference")
    assert json.loads(done.stdout)["kept"] is True
    assert "the report is not kept" in done.stderr
    assert done.returncode == 0
