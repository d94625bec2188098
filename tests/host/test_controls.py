"""Negative controls: with a protection taken away, the test that stands for it must fail."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.host

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Control:
    """How a protection is taken away, in Python, and a test that must notice."""

    without: str
    test: str
    #: What the failure is about: not any failure will do.
    said: str


CONTROLS = {
    "fsync of files and folders on the board": Control(
        "from edgeopt.board import script\n"
        "script._PROLOGUE = script._PROLOGUE.replace('flush() {', 'flush() { return 0;')",
        "tests/deploy/test_crash.py::test_what_is_renamed_was_flushed_before_and_its_folder_is_after",
        "StopIteration",
    ),
    "fsync of what is sent": Control(
        "from edgeopt.board.sftp import Sftp\n"
        "demand = Sftp._demand\n"
        "Sftp._demand = lambda self, kind, body, what: (\n"
        "    None if what.startswith('fsync') else demand(self, kind, body, what))",
        "tests/board/test_sftp.py::test_a_file_is_written_and_fsynced_where_that_is_possible",
        "assert",
    ),
    "digest of what arrived": Control(
        "from edgeopt.deploy import upload\n"
        "upload._SEAL = upload._SEAL.replace('!= \"$sha256\"', '= nothing')",
        "tests/deploy/test_release.py::test_a_bit_flipped_on_the_wire_is_sent_again_once",
        "assert release.sent",
    ),
    "digest of what is restored": Control(
        "from edgeopt.deploy import switch\n"
        "switch._CHECK_RELEASE = switch.COMMON",
        "tests/deploy/test_release.py::test_a_rollback_to_a_damaged_release_is_refused",
        "DID NOT RAISE|Regex",
    ),
    "digest of what lay there before a restart": Control(
        "from edgeopt.deploy import preflight\n"
        "asks = '/boot\" 2>/dev/null)\" = \"$boot\"'\n"
        "assert asks in preflight._SURVEY\n"
        "preflight._SURVEY = preflight._SURVEY.replace(asks, '/boot\")\" = \"$boot\" ] || [ 1')",
        "tests/host/test_power.py::"
        "test_a_file_of_zeros_after_a_restart_is_seen_and_replaced[weights.bin]",
        "assert sent",
    ),
    "lease of every command": Control(
        "from edgeopt.board import fence\n"
        "fence.FENCED = fence.FENCED.replace('ours() {', 'ours() { look; return 0;')",
        "tests/board/test_lease_taken.py::test_one_who_lost_it_can_run_and_write_nothing",
        "DID NOT RAISE",
    ),
    "lease of who asks": Control(
        "from edgeopt.board import lease\n"
        "lease.TAKE = lease.TAKE.replace('[ \"$now\" -ge \"$ends\" ]', 'true')",
        "tests/board/test_lease.py::test_one_holder_at_a_time_and_the_other_is_told_who",
        "DID NOT RAISE",
    ),
    "host key": Control(
        "from edgeopt.board import connect\n"
        "connect._verify = lambda key, known, hop: None",
        "tests/host/test_ssh.py::test_a_changed_host_key_is_refused_with_both_fingerprints",
        "DID NOT RAISE",
    ),
    "signature": Control(
        "from edgeopt.deploy import switch\n"
        "asks = 'if [ -e \"$root/allowed_signers\" ]'\n"
        "switch._SWITCH = switch._SWITCH.replace(asks, 'if false')",
        "tests/deploy/test_signature.py::test_a_board_with_a_signer_refuses_what_is_not_signed",
        "DID NOT RAISE",
    ),
    "health check": Control(
        "from edgeopt.deploy import release\n"
        "activate = release.activate_release\n"
        "release.activate_release = lambda *a, health=None, **o: activate(*a, **o)",
        "tests/deploy/test_release.py::"
        "test_a_program_that_fails_once_it_is_current_is_taken_back_and_the_old_one_is_run[2]",
        "DID NOT RAISE",
    ),
    "what was running when a lease is taken over": Control(
        "from edgeopt.board import lease\n"
        "lease.TAKE = lease.TAKE.replace('evict() {', 'evict() { return 0;')",
        "tests/board/test_lease_taken.py::test_a_kick_ends_the_commands_and_frees_the_board",
        "assert|Timeout",
    ),
}  # fmt: skip


def run_without(control: Control) -> "subprocess.CompletedProcess[str]":
    """Run the control's test, and nothing else, with the protection taken away."""
    code = (
        "import sys, pytest\n"
        "class Without:\n"
        f"    def pytest_sessionstart(self): exec({control.without!r}, {{}})\n"
        "sys.exit(pytest.main(sys.argv[1:], plugins=[Without()]))"
    )
    argv = ["-q", "-p", "no:cacheprovider", "--tb=short", control.test]
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("name", CONTROLS)
def test_without_a_protection_its_test_fails(name: str) -> None:
    control = CONTROLS[name]
    done = run_without(control)
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
    assert any(each in done.stdout for each in control.said.split("|")), done.stdout


def test_with_every_protection_a_test_passes() -> None:
    control = Control("pass", CONTROLS["lease of who asks"].test, "")
    assert run_without(control).returncode == 0
