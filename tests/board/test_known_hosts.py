"""known_hosts, as sshd(8) describes it and ssh-keygen writes it."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeopt.board.known_hosts import fingerprint, parse_known_keys, read_known_keys

KEY = base64.b64encode(b"\0\0\0\x0bssh-ed25519 the key itself").decode()
OTHER = base64.b64encode(b"\0\0\0\x07ssh-rsa another key").decode()


def blobs(text: str, name: str) -> list[tuple[str, bool]]:
    found = parse_known_keys(text, name, place="file")
    return [(base64.b64encode(each.blob).decode(), each.revoked) for each in found]


@pytest.mark.parametrize(
    ("field", "name", "matches"),
    [
        ("board", "board", True),
        ("board", "board2", False),
        ("board", "[board]:2222", False),
        ("[board]:2222", "[board]:2222", True),
        ("[board]:2222", "board", False),
        ("a,board,b", "board", True),
        ("Board", "bOARD", True),
        ("*.local", "pi.local", True),
        ("*.local,!pi.local", "pi.local", False),
        ("192.0.2.?", "192.0.2.7", True),
        ("[*]:2222", "[any]:2222", True),
    ],
)
def test_the_host_field_is_a_list_of_patterns(field: str, name: str, matches: bool) -> None:
    assert blobs(f"{field} ssh-ed25519 {KEY} comment\n", name) == ([(KEY, False)] * matches)


def test_several_keys_markers_and_broken_lines() -> None:
    text = (
        f"# board ssh-ed25519 {KEY}\n\nboard ssh-ed25519\nboard ssh-ed25519 not!base64\n"
        f"board ssh-rsa {OTHER}\nboard ssh-ed25519 {KEY}\n"
        f"@revoked board ssh-ed25519 {KEY}\n@cert-authority board ssh-rsa {OTHER}\n"
    )
    assert blobs(text, "board") == [(OTHER, False), (KEY, False), (KEY, True)]


def test_hashed_names_and_fingerprints_are_those_of_ssh_keygen(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen here; run: sudo apt-get install -y openssh-client")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    public = key.with_suffix(".pub").read_text().split()
    known = tmp_path / "known"
    known.write_text(f"[board]:2222 {public[0]} {public[1]}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
    assert "board" not in known.read_text()
    (found,) = read_known_keys([tmp_path / "absent", known], "[board]:2222")
    assert base64.b64encode(found.blob).decode() == public[1]
    assert found.place == f"{known}:1"
    assert read_known_keys([known], "[board]:2223") == ()
    shown = subprocess.run(["ssh-keygen", "-lf", key], check=True, capture_output=True, text=True)
    assert fingerprint(found.blob) == shown.stdout.split()[1]
