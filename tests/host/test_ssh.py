"""SSH boards against a real OpenSSH server on loopback, and a network that fails on purpose."""

import getpass
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.board import TIMED_OUT, Board
from edgeopt.board.connect import Patience
from edgeopt.board.destination import read_route
from edgeopt.board.local import LocalBoard
from edgeopt.board.ssh import SshBoard, open_ssh
from edgeopt.errors import BoardIncompatible, BoardUnreachable, ConfigError
from edgeopt.testing import FaultProxy
from tests.board.contract import HOSTILE, BoardContract, is_alive
from tests.conftest import Sshd

pytestmark = pytest.mark.host

HASTY = Patience(connect=5.0, silence=3.0)


def connect(config: Path, *, alias: str = "board", patience: Patience | None = None) -> SshBoard:
    return SshBoard(read_route(alias, ssh_config=config), name=alias, patience=patience)


@pytest.fixture(scope="module")
def shared(sshd: Sshd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshBoard]:
    config = sshd.write_config(tmp_path_factory.mktemp("config") / "config")
    found = open_ssh("board", ssh_config=config)
    yield found
    found.close()
    assert found.reconnects == 0


def when_written(path: Path, words: int, action: Callable[[], None]) -> threading.Thread:
    """Run action in a thread as soon as the file has that many words."""

    def watch() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if path.exists() and len(path.read_text().split()) == words:
                action()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


class TestSshBoard(BoardContract):
    """Every promise of a board, kept over SSH."""

    @pytest.fixture
    def board(self, shared: SshBoard) -> Board:
        return shared

    def test_its_figures_are_those_of_a_board(self, board: Board) -> None:
        assert (board.name, board.kind) == ("board", "board")


def test_an_unknown_host_key_is_refused_with_the_way_to_enrol_it(
    sshd: Sshd, tmp_path: Path
) -> None:
    config = sshd.write_config(tmp_path / "config", known="")
    with pytest.raises(BoardUnreachable, match="host key is unknown") as caught:
        open_ssh("board", ssh_config=config)
    assert f"ssh-keyscan -p {sshd.port} -t ed25519 127.0.0.1 >> " in caught.value.fix
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(sshd.folder / "host.pub")], capture_output=True, text=True
    ).stdout.split()[1]
    assert shown in caught.value.why
    assert "Accepted" not in sshd.log.rpartition("Connection from")[2]


def test_the_enrol_command_does_enrol(sshd: Sshd, tmp_path: Path) -> None:
    config = sshd.write_config(tmp_path / "config", known="")
    with pytest.raises(BoardUnreachable) as caught:
        open_ssh("board", ssh_config=config)
    command = caught.value.fix.partition("enrol it: ")[2]
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    open_ssh("board", ssh_config=config).close()


def test_a_changed_host_key_is_refused_with_both_fingerprints(
    sshd: Sshd, start_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    other = start_sshd()
    known = f"[127.0.0.1]:{sshd.port} {other.host_key}\n"
    config = sshd.write_config(tmp_path / "config", known=known)
    with pytest.raises(BoardUnreachable, match="not the known one") as caught:
        open_ssh("board", ssh_config=config)
    assert caught.value.why.count("SHA256:") == 2
    assert "ssh-keygen -R" in caught.value.fix


def test_a_revoked_key_is_refused_even_if_it_is_also_known(sshd: Sshd, tmp_path: Path) -> None:
    name = f"[127.0.0.1]:{sshd.port}"
    known = f"{name} {sshd.host_key}\n@revoked {name} {sshd.host_key}\n"
    config = sshd.write_config(tmp_path / "config", known=known)
    with pytest.raises(BoardUnreachable, match="revoked"):
        open_ssh("board", ssh_config=config)


def test_a_key_that_is_not_accepted_says_what_was_offered(
    sshd: Sshd, start_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    other = start_sshd()
    config = sshd.write_config(tmp_path / "config")
    config.write_text(config.read_text().replace(str(sshd.identity), str(other.identity)))
    with pytest.raises(BoardUnreachable, match="cannot log in as") as caught:
        open_ssh("board", ssh_config=config)
    assert str(other.identity) in caught.value.why
    assert "ssh-copy-id" in caught.value.fix


def test_an_encrypted_key_file_is_named_and_not_asked_for(sshd: Sshd, tmp_path: Path) -> None:
    key = tmp_path / "locked"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key)], check=True
    )
    config = sshd.write_config(tmp_path / "config")
    config.write_text(config.read_text().replace(str(sshd.identity), str(key)))
    with pytest.raises(BoardUnreachable, match="encrypted, not offered: load it with ssh-add"):
        open_ssh("board", ssh_config=config)


def test_the_agent_is_asked_for_a_key_that_no_file_holds(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "agent"
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL)
    try:
        while not place.exists():
            time.sleep(0.05)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
        subprocess.run(["ssh-add", "-q", str(sshd.identity)], check=True, capture_output=True)
        config = sshd.write_config(tmp_path / "config")
        text = config.read_text().replace(str(sshd.identity), str(tmp_path / "absent"))
        config.write_text(text)
        with pytest.raises(BoardUnreachable, match="there is no key to offer"):
            open_ssh("board", ssh_config=config)
        config.write_text(text.replace("IdentitiesOnly yes", "IdentitiesOnly no"))
        open_ssh("board", ssh_config=config).close()
    finally:
        agent.terminate()
        agent.wait(10)


def test_a_port_where_nothing_listens_says_so(sshd: Sshd, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = sshd.write_config(tmp_path / "config", port=port)
    with pytest.raises(BoardUnreachable, match="nothing listens"):
        open_ssh("board", ssh_config=config)


def test_a_silent_server_is_given_up_in_time(sshd: Sshd, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = sshd.write_config(tmp_path / "config", port=silent.getsockname()[1])
        begun = time.monotonic()
        with pytest.raises(BoardUnreachable, match="no answer"):
            connect(config, patience=Patience(connect=2.0, silence=2.0)).connect()
        assert time.monotonic() - begun < 8


def come_first(port: int) -> socket.socket:
    """Connect and stay, once the server has forgotten who came before."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        there = socket.create_connection(("127.0.0.1", port))
        if there.recv(4) == b"SSH-":
            return there
        there.close()
        time.sleep(0.1)
    raise AssertionError("the server lets nobody in")


def test_a_server_with_too_many_connections_is_asked_again(
    start_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    """With MaxStartups 1 it hangs up on whoever comes while somebody else is logging in."""
    crowded = start_sshd("MaxStartups 1\nLoginGraceTime 60")
    config = crowded.write_config(tmp_path / "config")
    with come_first(crowded.port) as other:
        begun = time.monotonic()
        with pytest.raises(BoardUnreachable, match="does not complete an SSH handshake"):
            connect(config, patience=Patience(connect=2.0, silence=2.0)).connect()
        assert time.monotonic() - begun < 5
        threading.Timer(1.5, other.shutdown, (socket.SHUT_RDWR,)).start()
        board = connect(config, patience=Patience(connect=20.0, silence=20.0))
        assert board.run(["true"], timeout=30).status == 0
        board.close()
    assert crowded.log.count("MaxStartups") >= 3, crowded.log


def test_a_server_whose_greeting_comes_late_is_waited_for(sshd: Sshd, tmp_path: Path) -> None:
    with FaultProxy(sshd.port, delay=0.5) as proxy:
        config = sshd.write_config(tmp_path / "config", port=proxy.port)
        board = connect(config, patience=Patience(connect=20.0, silence=20.0))
        assert board.run(["true"], timeout=60).status == 0
        board.close()
        with pytest.raises(BoardUnreachable, match="no answer"):
            connect(config, patience=Patience(connect=0.3, silence=20.0)).connect()


def test_a_server_of_weak_ciphers_only_is_refused(
    start_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    weak = start_sshd("Ciphers aes128-cbc")
    with pytest.raises(BoardUnreachable, match="does not complete an SSH handshake"):
        open_ssh("board", ssh_config=weak.write_config(tmp_path / "config"))


def test_a_jump_host_is_passed_and_its_key_verified(
    sshd: Sshd, start_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    jump = start_sshd()
    config = sshd.write_config(tmp_path / "config", extra="  ProxyJump gate")
    jump.write_config(config, alias="gate")
    board = connect(config)
    assert board.run(["echo", "through"], timeout=30).stdout == b"through\n"
    board.close()
    assert "direct-tcpip" in jump.log or "Accepted publickey" in jump.log
    (tmp_path / "config.gate.known").write_text(f"[127.0.0.1]:{jump.port} {sshd.host_key}\n")
    with pytest.raises(BoardUnreachable, match=r"^gate: its host key is not the known one"):
        connect(config).connect()


def test_a_jump_host_that_forwards_nothing_is_named(
    sshd: Sshd, start_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    jump = start_sshd("AllowTcpForwarding no")
    config = sshd.write_config(tmp_path / "config", extra="  ProxyJump gate")
    jump.write_config(config, alias="gate")
    with pytest.raises(BoardUnreachable, match="the jump host does not connect"):
        connect(config).connect()


def test_a_jump_host_that_goes_is_noticed_as_a_board_that_goes(
    sshd: Sshd, start_sshd: Callable[..., Sshd], tmp_path: Path
) -> None:
    """Cut in the middle it is passed again for a file; silent it is given up, and named."""
    jump = start_sshd()
    content = bytes(range(256)) * 12_000
    (tmp_path / "sent").write_bytes(content)
    there = PurePosixPath(str(tmp_path / "there"))
    with FaultProxy(jump.port, fault="reset", at_byte=1_000_000, faults=1) as proxy:
        config = sshd.write_config(tmp_path / "config", extra="  ProxyJump gate")
        jump.write_config(config, alias="gate", port=proxy.port)
        board = connect(config, patience=HASTY)
        board.put(tmp_path / "sent", there, timeout=60)
        assert (tmp_path / "there").read_bytes() == content
        assert board.reconnects == 1
        board.close()
    with FaultProxy(jump.port) as proxy:
        config = sshd.write_config(tmp_path / "other", extra="  ProxyJump gate")
        jump.write_config(config, alias="gate", port=proxy.port)
        board = connect(config, patience=HASTY)
        board.connect()
        proxy.at_byte, proxy.fault = 0, "blackhole"
        begun = time.monotonic()
        with pytest.raises(BoardUnreachable, match=r"nothing was heard|no answer|gate"):
            board.put(tmp_path / "sent", there, timeout=100)
        assert time.monotonic() - begun < 3 * (HASTY.silence + 2 * HASTY.connect)
        board.close()


LOGINS = {
    "a noisy login": 'echo welcome; echo noise >&2; exec sh -c "$SSH_ORIGINAL_COMMAND"',
    "fish": 'exec fish -c "$SSH_ORIGINAL_COMMAND"',
    "csh": 'exec csh -c "$SSH_ORIGINAL_COMMAND"',
}


@pytest.mark.parametrize("login", LOGINS)
def test_results_do_not_depend_on_the_login_shell(
    start_sshd: Callable[..., Sshd], tmp_path: Path, login: str
) -> None:
    shell = login.split()[-1]
    if shell != "login" and shutil.which(shell) is None:
        pytest.skip(f"no {shell} here; run: sudo apt-get install -y {shell}")
    server = start_sshd(f"ForceCommand {LOGINS[login]}")
    board = connect(server.write_config(tmp_path / "config"))
    done = board.run(["printf", "%s|", *HOSTILE], timeout=30)
    assert done.stdout.decode() == "".join(f"{word}|" for word in HOSTILE)
    assert done.stderr == b""
    done = board.run(["sh", "-c", "cat; echo e >&2; exit 9"], stdin=b"in", timeout=30)
    assert (done.status, done.stdout, done.stderr) == (9, b"in", b"e\n")
    board.close()


def test_busybox_is_all_that_a_board_needs(start_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox here; run: sudo apt-get install -y busybox-static")
    tools = tmp_path / "bin"
    tools.mkdir()
    subprocess.run([busybox, "--install", "-s", str(tools)], check=True)
    server = start_sshd(f'ForceCommand PATH={tools} exec {tools}/sh -c "$SSH_ORIGINAL_COMMAND"')
    board = connect(server.write_config(tmp_path / "config"))
    assert board.run(["readlink", "-f", "/proc/self/exe"], timeout=30).stdout.strip() == (
        busybox.encode()
    )
    assert board.run(["cat"], stdin=b"payload", timeout=30).stdout == b"payload"
    assert board.run(["sh", "-c", "kill -KILL $$"], timeout=30).status == 137
    done = board.run(["sh", "-c", "sleep 985 & echo $!; wait"], timeout=1)
    assert done.status == TIMED_OUT
    assert not is_alive(LocalBoard(), done.stdout.decode().strip())
    board.close()


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("internal-sftp", "login does not run commands"),
        ("echo this account is not available; exit 1", "this account is not available"),
    ],
)
def test_a_login_that_runs_no_commands_is_told_apart(
    start_sshd: Callable[..., Sshd], tmp_path: Path, command: str, shown: str
) -> None:
    server = start_sshd(f"ForceCommand {command}")
    board = connect(server.write_config(tmp_path / "config"))
    with pytest.raises(BoardIncompatible, match=shown):
        board.run(["true"], timeout=30)
    board.close()


def test_a_server_without_sftp_is_told(start_sshd: Callable[..., Sshd], tmp_path: Path) -> None:
    server = start_sshd("Subsystem sftp /nonexistent")
    board = connect(server.write_config(tmp_path / "config"))
    (tmp_path / "file").write_text("x")
    with pytest.raises((BoardIncompatible, BoardUnreachable)):
        board.put(tmp_path / "file", PurePosixPath("/tmp/edgeopt-never"), timeout=30)
    assert board.run(["true"], timeout=30).status == 0
    board.close()


@pytest.mark.parametrize("sessions", [1, 2, 10])
def test_one_session_at_a_time_is_enough(
    start_sshd: Callable[..., Sshd], tmp_path: Path, sessions: int
) -> None:
    server = start_sshd(f"MaxSessions {sessions}")
    board = connect(server.write_config(tmp_path / "config"))
    (tmp_path / "file").write_text("x")
    for _ in range(3):
        assert board.run(["true"], timeout=30).status == 0
        board.put(tmp_path / "file", PurePosixPath(str(tmp_path / "there")), timeout=30)
    assert board.reconnects == 0
    board.close()


@pytest.mark.parametrize("at_byte", [4000, 40_000, 2_200_000, 2_900_000])
def test_an_upload_cut_by_a_reset_is_sent_again(sshd: Sshd, tmp_path: Path, at_byte: int) -> None:
    content = bytes(range(256)) * 12_000
    (tmp_path / "sent").write_bytes(content)
    with FaultProxy(sshd.port, fault="reset", at_byte=at_byte, faults=1) as proxy:
        board = connect(sshd.write_config(tmp_path / "config", port=proxy.port))
        board.put(tmp_path / "sent", PurePosixPath(str(tmp_path / "there")), timeout=60)
        assert (tmp_path / "there").read_bytes() == content
        assert board.reconnects == 1
        assert proxy.accepted == 2
        board.close()


def test_an_upload_cut_at_any_byte_is_sent_again(sshd: Sshd, tmp_path: Path) -> None:
    """The bytes of the handshake count: a cut within it is one before anything was sent."""
    content = random.Random(3).randbytes(200_000)
    (tmp_path / "sent").write_bytes(content)
    there = tmp_path / "there"
    edges = [0, 1, (32 << 10) - 1, 32 << 10, (32 << 10) + 1, len(content) - 1, len(content)]
    chosen = random.Random(1)
    for at_byte in (*edges, *(chosen.randrange(len(content)) for _ in range(50))):
        there.unlink(missing_ok=True)
        with FaultProxy(sshd.port, fault="reset", at_byte=at_byte, faults=1) as proxy:
            config = sshd.write_config(tmp_path / f"config{at_byte}", port=proxy.port)
            board = connect(config)
            board.put(tmp_path / "sent", PurePosixPath(str(there)), timeout=60)
            assert there.read_bytes() == content, at_byte
            assert proxy.accepted == 2, at_byte
            board.close()


def test_an_upload_with_a_bit_flipped_on_the_wire_is_sent_again(sshd: Sshd, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    (tmp_path / "sent").write_bytes(content)
    with FaultProxy(sshd.port, fault="flip", at_byte=500_000, faults=1) as proxy:
        board = connect(sshd.write_config(tmp_path / "config", port=proxy.port))
        board.put(tmp_path / "sent", PurePosixPath(str(tmp_path / "there")), timeout=60)
        assert (tmp_path / "there").read_bytes() == content
        # The server found a wrong MAC and hung up.
        assert (board.reconnects, proxy.accepted) == (1, 2)
        board.close()


def test_a_slow_link_is_slow_and_nothing_else(sshd: Sshd, tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "sent").write_bytes(content)
    # 16 KiB in 50 ms each way: 320 kB/s, and 100 ms for every answer.
    with FaultProxy(sshd.port, delay=0.05) as proxy:
        board = connect(sshd.write_config(tmp_path / "config", port=proxy.port), patience=HASTY)
        there = PurePosixPath(str(tmp_path / "there"))
        board.put(tmp_path / "sent", there, timeout=60)
        board.get(there, tmp_path / "back", limit=1 << 20, timeout=60)
        assert (tmp_path / "back").read_bytes() == content
        assert board.reconnects == 0
        board.close()


def test_a_connection_lost_while_idle_is_opened_again(sshd: Sshd, tmp_path: Path) -> None:
    with FaultProxy(sshd.port) as proxy:
        board = connect(sshd.write_config(tmp_path / "config", port=proxy.port))
        assert board.run(["true"], timeout=30).status == 0
        proxy.cut()
        assert board.run(["echo", "again"], timeout=30).stdout == b"again\n"
        assert board.reconnects == 1
        board.close()


def test_a_command_that_may_have_run_is_not_sent_twice(sshd: Sshd, tmp_path: Path) -> None:
    with FaultProxy(sshd.port) as proxy:
        board = connect(sshd.write_config(tmp_path / "config", port=proxy.port))
        board.connect()
        trace = tmp_path / "trace"
        cutting = when_written(trace, 1, proxy.cut)
        with pytest.raises(BoardUnreachable, match="connection was lost"):
            board.run(["sh", "-c", f"echo $$ >>{trace}; sleep 984"], timeout=30)
        cutting.join()
        numbers = trace.read_text().split()
        assert len(numbers) == 1
        assert not is_alive(LocalBoard(), numbers[0])
        board.close()


def test_closing_the_connection_leaves_no_orphan(sshd: Sshd, tmp_path: Path) -> None:
    board = connect(sshd.write_config(tmp_path / "config"))
    trace = tmp_path / "trace"
    closing = when_written(trace, 2, board.close)
    script = f"sleep 983 & echo $! $$ >{trace}; wait"
    with pytest.raises(BoardUnreachable):
        board.run(["sh", "-c", script], timeout=30)
    closing.join()
    numbers = trace.read_text().split()
    assert len(numbers) == 2
    for number in numbers:
        assert not is_alive(LocalBoard(), number)


@pytest.mark.parametrize("what", ["run", "put"])
def test_a_board_that_falls_silent_is_noticed_within_its_patience(
    sshd: Sshd, tmp_path: Path, what: str
) -> None:
    (tmp_path / "sent").write_bytes(bytes(20 << 20))
    with FaultProxy(sshd.port) as proxy:
        board = connect(sshd.write_config(tmp_path / "config", port=proxy.port), patience=HASTY)
        board.connect()
        proxy.at_byte = proxy.forwarded + 100_000 if what == "put" else 0
        if what == "put":
            proxy.fault = "blackhole"
        else:
            threading.Timer(1.0, lambda: setattr(proxy, "fault", "blackhole")).start()
        begun = time.monotonic()
        there = PurePosixPath(str(tmp_path / "there"))
        calls: dict[str, Callable[[], object]] = {
            "put": lambda: board.put(tmp_path / "sent", there, timeout=100),
            "run": lambda: board.run(["sleep", "982"], timeout=100),
        }
        with pytest.raises(BoardUnreachable):
            calls[what]()
        # Silence, and for the upload one try to connect again.
        assert time.monotonic() - begun < 3 * (HASTY.silence + HASTY.connect)
        board.close()


def test_a_long_quiet_command_is_not_taken_for_a_dead_board(sshd: Sshd, tmp_path: Path) -> None:
    board = connect(sshd.write_config(tmp_path / "config"), patience=Patience(5.0, 1.0))
    assert board.run(["sh", "-c", "sleep 4; echo done"], timeout=30).stdout == b"done\n"
    assert board.reconnects == 0
    board.close()


def test_the_users_own_ssh_reaches_what_the_configuration_names(sshd: Sshd, tmp_path: Path) -> None:
    config = sshd.write_config(tmp_path / "config")
    done = subprocess.run(
        ["ssh", "-F", str(config), "board", "true"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    board = open_ssh(f"{getpass.getuser()}@board", ssh_config=config)
    board.close()
    with pytest.raises(ConfigError):
        open_ssh("board; reboot", ssh_config=config)
