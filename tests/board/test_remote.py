"""The supervised command in every shell that is here: as login shell, and as /bin/sh."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeopt.board.remote import LOGIN, supervised
from tests.board.contract import HOSTILE

MARK = "0123456789abcdef"


@pytest.fixture(params=["sh", "dash", "bash", "busybox", "fish", "csh"])
def login(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """A login shell's command line, and an environment whose sh is busybox's for busybox."""
    name: str = request.param
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here; run: sudo apt-get install -y {name}")
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    if name == "busybox":
        subprocess.run([found, "--install", "-s", str(tmp_path)], check=True)
        return [str(tmp_path / "sh"), "-c", LOGIN], {**environment, "PATH": str(tmp_path)}
    return [found, "-c", LOGIN], environment


def talk(
    login: tuple[list[str], dict[str, str]], argv: list[str], stdin: bytes = b""
) -> tuple[int, bytes, bytes]:
    """Run one command and return its status and streams after the marker; stdin stays open."""
    words, environment = login
    with subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        assert shell.stderr is not None
        shell.stdin.write(supervised(argv, mark=MARK, size=len(stdin), limit=60) + stdin)
        shell.stdin.flush()
        status = shell.wait(30)
        # As sshd does when the shell has ended; csh gives copies of its streams to its children.
        shell.stdin.close()
        out, err = shell.stdout.read(), shell.stderr.read()
    mark = MARK.encode() + b"\n"
    assert out.startswith(mark)
    assert err.startswith(mark)
    return status, out.removeprefix(mark), err.removeprefix(mark)


def test_arguments_stdin_and_status_pass(login: tuple[list[str], dict[str, str]]) -> None:
    expected = "".join(f"{word}|" for word in HOSTILE).encode()
    assert talk(login, ["printf", "%s|", *HOSTILE]) == (0, expected, b"")
    assert talk(login, ["cat"], b"a\0b\n") == (0, b"a\0b\n", b"")
    assert talk(login, ["sh", "-c", "echo e >&2; exit 3"]) == (3, b"", b"e\n")
    assert talk(login, ["sh", "-c", "kill -KILL $$"])[0] == 128 + signal.SIGKILL
    assert talk(login, ["/nonexistent"])[0] == 127


def test_the_end_of_stdin_kills_the_group(
    login: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    words, environment = login
    trace = tmp_path / "trace"
    script = 'sleep 977 & echo $! $$ >"$1"; wait'
    line = supervised(["sh", "-c", script, "sh", str(trace)], mark=MARK, size=0, limit=60)
    with subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as shell:
        assert shell.stdin is not None
        shell.stdin.write(line)
        shell.stdin.flush()
        assert eventually(lambda: trace.exists() and len(trace.read_text().split()) == 2)
        numbers = trace.read_text().split()
        assert all(runs(number) for number in numbers)
        shell.stdin.close()
        assert shell.wait(20) == 128 + signal.SIGKILL
    assert eventually(lambda: not any(map(runs, numbers)))


def test_the_boards_own_deadline_holds_when_the_client_says_nothing(
    login: tuple[list[str], dict[str, str]],
) -> None:
    words, environment = login
    with subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as shell:
        assert shell.stdin is not None
        shell.stdin.write(supervised(["sleep", "976"], mark=MARK, size=0, limit=1))
        shell.stdin.flush()
        assert shell.wait(20) == 128 + signal.SIGKILL


def test_a_payload_that_is_cut_short_starts_nothing(
    login: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    words, environment = login
    line = supervised(["touch", str(tmp_path / "ran")], mark=MARK, size=100, limit=60)
    done = subprocess.run(
        words, env=environment, input=line + b"only this", capture_output=True, timeout=30
    )
    assert done.returncode == 125
    assert b"stdin: 9 of 100 bytes" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_zero_byte_cannot_be_an_argument() -> None:
    with pytest.raises(ValueError, match="zero byte"):
        supervised(["a\0b"], mark=MARK, size=0, limit=1)


def test_the_request_is_one_line_whatever_the_arguments() -> None:
    line = supervised(HOSTILE, mark=MARK, size=0, limit=1)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    # csh and fish read these in their own way even between single quotes.
    assert not set("\n\\!") & set(LOGIN)


def runs(number: str) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False
