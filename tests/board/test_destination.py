"""What the user writes, resolved as ssh would, and refused where ssh would run a program."""

import getpass
from pathlib import Path

import pytest

from edgeopt.board.destination import read_route
from edgeopt.errors import ConfigError

HOME = Path.home()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(
        "Host pi\n  HostName raspberrypi.local\n  User pi\n  Port 2222\n"
        "  IdentityFile ~/.ssh/pi_key\n  IdentitiesOnly yes\n"
        "  UserKnownHostsFile ~/.ssh/boards\n  HostKeyAlias lab-pi\n"
        "Host far\n  ProxyJump gate,admin@192.0.2.9:2200\n"
        "Host gate\n  HostName gate.example\n  User jumper\n"
        "Host run\n  ProxyCommand nc %h %p\n"
        "Host loop\n  ProxyJump loop\n"
    )
    return path


@pytest.mark.parametrize(
    ("text", "user", "host", "port", "known_as"),
    [
        ("board", None, "board", 22, "board"),
        ("ubuntu@board.local", "ubuntu", "board.local", 22, "board.local"),
        ("u@192.0.2.7:2222", "u", "192.0.2.7", 2222, "[192.0.2.7]:2222"),
        ("ssh://u@board:99/", "u", "board", 99, "[board]:99"),
        ("u@[2001:db8::1]:99", "u", "2001:db8::1", 99, "[2001:db8::1]:99"),
        ("fe80::1%eth0", None, "fe80::1%eth0", 22, "fe80::1%eth0"),
        ("pi", "pi", "raspberrypi.local", 2222, "lab-pi"),
        ("root@pi:22", "root", "raspberrypi.local", 22, "lab-pi"),
    ],
)
def test_a_destination_is_read_as_ssh_reads_it(
    config: Path, text: str, user: str | None, host: str, port: int, known_as: str
) -> None:
    (hop,) = read_route(text, ssh_config=config)
    assert (hop.user, hop.host, hop.port) == (user or getpass.getuser(), host, port)
    assert (hop.label, hop.known_as) == (text, known_as)


def test_an_alias_brings_its_keys_and_its_known_hosts(config: Path) -> None:
    (hop,) = read_route("pi", ssh_config=config)
    assert hop.identities == (HOME / ".ssh" / "pi_key",)
    assert not hop.agent
    assert hop.known_hosts[0] == HOME / ".ssh" / "boards"
    (plain,) = read_route("other", ssh_config=config)
    assert plain.identities[0] == HOME / ".ssh" / "id_ed25519"
    assert plain.agent
    assert plain.known_hosts[0] == HOME / ".ssh" / "known_hosts"


def test_jumps_come_before_the_board_each_with_its_own_settings(config: Path) -> None:
    route = read_route("me@far", ssh_config=config)
    assert [(hop.user, hop.host, hop.port) for hop in route] == [
        ("jumper", "gate.example", 22),
        ("admin", "192.0.2.9", 2200),
        ("me", "far", 22),
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not a board's address"),
        ("-oProxyCommand=reboot", "not a board's address"),
        ("a b", "not a board's address"),
        ("pi@", "not a board's address"),
        ("pi@host:0", "not a board's address"),
        ("pi@host:99999", "not a board's address"),
        ("$(reboot)", "not a board's address"),
        ("run", "ProxyCommand is not supported"),
        ("loop", "more than 8 jumps"),
    ],
)
def test_what_cannot_be_meant_is_refused(config: Path, text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        read_route(text, ssh_config=config)
    assert caught.value.fix


def test_match_exec_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "inner").write_text(f'Match host a exec "touch {tmp_path}/ran"\n  User x\n')
    (tmp_path / "config").write_text(f"Include {tmp_path}/inn*\n")
    with pytest.raises(ConfigError, match="inner: 'Match exec' is refused"):
        read_route("a", ssh_config=tmp_path / "config")
    assert not (tmp_path / "ran").exists()


def test_included_files_count_and_a_circle_of_them_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.conf").write_text("Host a\n  Port 1001\n")
    (tmp_path / "config").write_text(f"Include {tmp_path}/*.conf\nHost *\n  Port 7\n")
    assert read_route("a", ssh_config=tmp_path / "config")[0].port == 1001
    assert read_route("b", ssh_config=tmp_path / "config")[0].port == 7
    (tmp_path / "one.conf").write_text(f"include={tmp_path}/one.conf\n")
    with pytest.raises(ConfigError, match="circle"):
        read_route("a", ssh_config=tmp_path / "config")


def test_a_configuration_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_route("a", ssh_config=tmp_path / "absent")
