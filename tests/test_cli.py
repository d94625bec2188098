import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from edgeopt import cli
from edgeopt.cli.again import list_commands
from edgeopt.cli.request import Request

HEAVY = ("torch", "onnx", "tvm", "onnxruntime", "numpy", "paramiko")


def edgeopt(
    *arguments: str,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
    stdout: IO[str] | int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeopt", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.parametrize("arguments", [["--help"], ["deploy", "--help"], ["targets", "list"]])
def test_help_and_lists_load_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; sys.argv = ['edgeopt', *sys.argv[1:]]\n"
        "from edgeopt.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.stdout
    assert done.stderr.strip().endswith("[]"), done.stderr


def test_help_names_every_command() -> None:
    text = edgeopt("--help").stdout
    verbs = ("deploy", "plan", "compile", "tune", "status", "rollback", "targets", "board", "init")
    for command in verbs:
        assert f"\n  {command}" in text


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["deploy", "--target", "rpi44"], 2, "did you mean 'rpi4'"),
        (["deploy", "--target", "rpi4", "--ram", "20"], 2, "--ram 32MB"),
        (["deploy", "--target", "rpi4", "--profile", "tinny"], 2, "did you mean 'tiny'"),
        (["deploy", "--target", "rpi4"], 2, "edgeopt init --example questions"),
        (["deploy", "--target", "rpi4", "--model", "no.onnx"], 2, "no.onnx"),
        (["deploy"], 2, "--target"),
        (["targets", "show", "nothing"], 2, "edgeopt targets list"),
        (["report", "--target", "rpi4"], 2, "edgeopt deploy --target rpi4"),
        (["init", "--example", "poems", "new"], 2, "--example questions or --example trec"),
        (["init", "--data", "x", "new"], 2, "leave out --data"),
        (["init", "--seed", "1", "new"], 2, "leave out --seed"),
        (["deploy", "--target", "generic-armv7", "--model", "m.onnx"], 2, "--board"),
        (["deploy", "--target", "rpi4", "--ram", ""], 2, "--ram 32MB"),
        (["deploy", "--target", "rpi4", "--profile", ""], 2, "edgeopt profiles list"),
        (["deploy", "--target", "rpi4", "--model", "m.onnx", "--board", ""], 2, "board's address"),
        (
            ["deploy", "--target", "rpi4", "--model", "m.onnx", "--board", "a;b"],
            2,
            "board's address",
        ),
        (["deploy", "--target", "rpi4", "--model", "m.onnx", "--max-drop", "1%"], 2, "[task]"),
        (["deploy", "--target", "rpi4", "--model", "m.onnx", "--value", "x=nan"], 2, "--value"),
        (
            ["deploy", "--target", "rpi4", "--model", "m.onnx", "--html", "no/x.html"],
            2,
            "no/x.html",
        ),
        (["targets", "probe", "local", "--output", "no/x.toml"], 2, "no/x.toml"),
        (["status", "--target", "rpi4"], 2, "--app"),
        (["status", "--target", "rpi4", "--board", "local", "--app", "../x"], 2, "application"),
    ],
)
def test_bad_input_ends_with_its_exit_code_and_the_way_to_mend_it(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    done = edgeopt(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_mistake_in_the_project_file_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "edgeopt.toml").write_text('app = "a"\nmodle = "m.onnx"\n')
    done = edgeopt("deploy", "--target", "rpi4", cwd=tmp_path)
    assert done.returncode == 2
    assert "edgeopt.toml:2" in done.stderr
    assert "did you mean 'model'" in done.stderr


@pytest.mark.parametrize(
    ("task", "said"),
    [("", "kind: missing"), ('kind = "array"', "did you mean 'arrays'"), ("kind = 5", "kind")],
)
def test_a_task_of_no_known_kind_is_refused_in_plain_words(
    task: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "edgeopt.toml").write_text(f'app = "a"\nmodel = "m.onnx"\n[task]\n{task}\n')
    done = edgeopt("plan", "--target", "rpi4", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "edgeopt.toml:3" in done.stderr
    assert said in done.stderr
    assert "discriminator" not in done.stderr


def test_an_error_under_json_is_one_document(tmp_path: Path) -> None:
    done = edgeopt("deploy", "--target", "rpi44", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert document["error"]["code"] == done.returncode == 2
    assert document["error"]["retryable"] is False


@pytest.mark.parametrize(
    "arguments", [["deploy", "--nope"], ["deploy"], ["nothing"], ["targets", "show", "rpi44"]]
)
def test_wrong_usage_under_json_is_one_document_too(arguments: list[str]) -> None:
    done = edgeopt(*arguments, "--json")
    assert json.loads(done.stdout)["error"]["code"] == done.returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [["targets", "list"], ["profiles", "list"], ["targets", "show", "rpi4"], ["board", "list"]],
)
def test_every_document_says_which_form_it_has(arguments: list[str]) -> None:
    assert json.loads(edgeopt(*arguments, "--json").stdout)["schema_version"] == 1


@pytest.mark.parametrize("kind", ["targets", "profiles"])
def test_a_schema_needs_no_name(kind: str) -> None:
    assert "properties" in json.loads(edgeopt(kind, "show", "--schema").stdout)


def test_a_cache_that_cannot_be_is_no_bug(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = edgeopt("cache", environment={"EDGEOPT_CACHE_DIR": str(tmp_path / "file")})
    assert done.returncode == 2
    assert "EDGEOPT_CACHE_DIR" in done.stderr


def test_a_full_disk_is_no_bug() -> None:
    with Path("/dev/full").open("w") as full:
        done = edgeopt("targets", "list", stdout=full)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_escape_sequences_of_a_model_do_not_reach_the_terminal(tmp_path: Path) -> None:
    done = edgeopt("deploy", "--target", "rpi4", "--model", "\x1b[31m\x07.onnx", cwd=tmp_path)
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_command_says_so_however_often_it_is_stopped(
    stop: signal.Signals, tmp_path: Path
) -> None:
    # A server that says nothing keeps it waiting.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeopt", "targets", "probe", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        connection, _ = silent.accept()
        with connection:
            process.send_signal(stop)
            time.sleep(0.05)
            process.send_signal(stop)
            _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert said.startswith("error: interrupted")


def test_a_command_stopped_while_code_is_made_from_a_string_has_the_same_exit_code(
    tmp_path: Path,
) -> None:
    (tmp_path / "stopped.py").write_text(
        "import os, signal\n"
        "from edgeopt import cli\n"
        "made = 'os.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(9): pass'\n"
        "cli.app = lambda **_: exec(made)\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "stopped"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("error: interrupted")


def test_onnxruntime_leaves_no_identifier_and_reports_nothing(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", "import edgeopt.model.oracle"],
        env={**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": ""},
        check=True,
        timeout=60,
    )
    assert list(tmp_path.iterdir()) == []


def test_init_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    done = edgeopt("init", "--example", "questions", str(tmp_path))
    assert done.returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt"]


def test_every_target_and_profile_is_shown_and_listed() -> None:
    listed = json.loads(edgeopt("targets", "list", "--json").stdout)
    names = {each["name"] for each in listed["targets"]}
    assert {"rpi4", "rpi5", "generic-armv7", "x86-64"} <= names
    assert 'name = "rpi4"' in edgeopt("targets", "show", "rpi4").stdout
    assert "int8-rows" in edgeopt("profiles", "list").stdout


def test_the_commands_of_a_report_have_every_option_that_decided_the_plan() -> None:
    request = Request(
        target="rpi4",
        project=Path("my project"),
        flash="10MB",
        latency="30ms",
        shapes=["x=1x8"],
        trim_vocabulary=False,
        effort="quick",
        board="pi@host",
    )
    found = dict(list_commands(request))
    options = (
        "--target rpi4 --project 'my project' --flash 10MB --latency 30ms --effort quick"
        " --shape x=1x8 --no-trim-vocabulary"
    )
    assert f"edgeopt plan {options} --layers" in found.values()
    assert f"edgeopt deploy {options} --board pi@host --json" in found.values()
    # The limit on latency is none of fit's options.
    (fit,) = (each for each in found.values() if each.startswith("edgeopt fit"))
    assert "--latency" not in fit
    assert "--effort quick" in fit


def test_an_interrupt_that_a_compiled_module_makes_an_error_of_its_own_is_still_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*, interrupted: bool) -> None:
        try:
            if interrupted:
                cli._interrupt(signal.SIGINT, None)
        except KeyboardInterrupt:
            pass
        raise ValueError("the module could not be loaded")

    monkeypatch.setattr(cli, "_stopped", [])
    monkeypatch.setattr(cli, "app", lambda **_: fails(interrupted=False))
    with pytest.raises(ValueError, match="could not be loaded"):
        cli._run()
    monkeypatch.setattr(cli, "app", lambda **_: fails(interrupted=True))
    assert cli._run() == 130
