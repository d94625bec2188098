"""Releases signed with a key of OpenSSH: who made one, for which application, and none older.

What is signed is a statement of five lines, which names the release by its digest, so that it
holds for every byte of it. Signatures are made and verified by `ssh-keygen -Y` (OpenSSH 8.1 and
later; format: PROTOCOL.sshsig of its sources), on the host and, where the program is there, on
the board.
"""

import hashlib
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeopt.artifact import BundleFile
from edgeopt.board import Board
from edgeopt.board.script import QUICK, run_script
from edgeopt.deploy.alive import MANIFEST_LIMIT
from edgeopt.deploy.place import Place, check_digest, check_name, hash_timeout
from edgeopt.deploy.switch import place_statement
from edgeopt.errors import BoardIncompatible, ConfigError, DeployFailed
from edgeopt.scratch import scratch

#: The host's own program; the board's is looked up there.
KEYGEN = "ssh-keygen"
#: Both in the folder of a release; nothing else lists them.
STATEMENT, SIGNATURE = "statement", "statement.sig"
#: What a signature is for: one that was made for anything else is none.
_NAMESPACE = "edgeopt"
#: Bytes of a statement, of a signature.
_SMALL = 4096
_STATEMENT = re.compile(
    r"edgeopt release 1\napp (?P<app>[A-Za-z0-9._-]{1,64})\ndigest (?P<digest>[0-9a-f]{64})\n"
    r"target (?P<target>[A-Za-z0-9._-]{1,64})\nserial (?P<serial>[0-9]{1,12})\n"
)

# Pairs: the digest that a file must have, and its name.
_CHECK_NAMED = r"""
cd "$1"; shift
while [ $# -ge 2 ]; do
    found=$(sha256sum < "$2") || found=unreadable
    [ "${found%% *}" = "$1" ] || fail "$2 is not what the signed manifest says"
    shift 2
done
"""


class _Listed(BaseModel):
    """What a manifest says of its target and files; the rest of it is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    target: str
    files: tuple[BundleFile, ...]


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signs and whose signatures count; without allowed signers, the key's own only."""

    #: A private key, or the public half of one that the agent holds; None: only verified.
    key: Path | None
    #: In the format of ssh-keygen(1), ALLOWED SIGNERS.
    allowed: Path | None = None


@dataclass(frozen=True, slots=True)
class Signed:
    """A statement, its signature, and the signers that the board is to ask for from now on."""

    statement: str
    signature: str
    allowed: str
    #: Whether a release older than one that was current may become so.
    downgrade: bool = False


def sign_release(
    signer: Signer,
    *,
    app: str,
    digest: str,
    target: str,
    serial: int | None = None,
    downgrade: bool = False,
) -> Signed:
    """Sign a release; raises ConfigError when the key cannot sign or is not allowed to.

    serial: what orders releases, seconds since 1970 by this host's clock if not given.
    """
    serial = int(time.time()) if serial is None else serial
    statement = (
        f"edgeopt release 1\napp {check_name(app, 'application')}\n"
        f"digest {check_digest(digest)}\ntarget {check_name(target, 'target')}\nserial {serial}\n"
    )
    if signer.key is None:
        raise ConfigError(
            "releases must be signed, and there is no key to sign with",
            why="[signing] of edgeopt.toml has allowed_signers and no key",
            fix="name one: edgeopt deploy --sign ~/.ssh/id_ed25519",
        )
    with scratch() as folder:
        draft = folder / STATEMENT
        draft.write_text(statement)
        done = _keygen("sign", "-q", "-f", str(signer.key), "-n", _NAMESPACE, str(draft))
        if done.returncode != 0:
            raise ConfigError(
                f"{signer.key} cannot sign",
                why=done.stderr.decode(errors="replace").strip()[-400:]
                or "ssh-keygen says nothing",
                fix="name a private key without a passphrase, or the .pub of one in ssh-agent",
            )
        signature = (folder / SIGNATURE).read_text()
    allowed = read_allowed(signer)
    problem = find_forgery(statement, signature, allowed)
    if problem:
        raise ConfigError(
            f"{signer.key} is not a key whose signatures count",
            why=f"{signer.allowed}: {problem}",
            fix="add it there (see ALLOWED SIGNERS in ssh-keygen(1)), or sign with another key",
        )
    return Signed(statement, signature, allowed, downgrade)


def read_allowed(signer: Signer) -> str:
    """Return the allowed signers' lines: of their file, or of the key alone."""
    path = signer.allowed
    try:
        if path is not None:
            return path.read_text()
        key = signer.key or Path()
        words = key.with_name(f"{key.name.removesuffix('.pub')}.pub").read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read whose signatures count: {path or signer.key}",
            why=str(error),
            fix="ssh-keygen -y -f KEY > KEY.pub writes the public half of a key",
        ) from error
    return f'edgeopt namespaces="{_NAMESPACE}" {" ".join(words[:2])}\n'


def find_forgery(statement: str, signature: str, allowed: str) -> str:
    """Say why a signature does not count, or return an empty string when it does."""
    with scratch() as folder:
        (folder / SIGNATURE).write_text(signature)
        (folder / "allowed").write_text(allowed)
        named = ("-s", str(folder / SIGNATURE), "-f", str(folder / "allowed"))
        found = _keygen("find-principals", *named)
        who = found.stdout.decode(errors="replace").splitlines()
        if found.returncode != 0 or not who:
            return "it is signed by nobody who is allowed to"
        done = _keygen(
            "verify", *named, "-I", who[0], "-n", _NAMESPACE, stdin=statement.encode()
        )  # fmt: skip
    return "" if done.returncode == 0 else "the signature is of another text"


def _keygen(verb: str, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run ssh-keygen without a terminal, so that it asks nobody for a passphrase."""
    environment = {**os.environ, "SSH_ASKPASS_REQUIRE": "never", "LC_ALL": "C"}
    try:
        return subprocess.run(
            [KEYGEN, "-Y", verb, *arguments],
            input=stdin,
            capture_output=True,
            env=environment,
            start_new_session=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            "signatures need the program ssh-keygen",
            why="it is not on this machine",
            fix="sudo apt-get install -y openssh-client",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            "ssh-keygen does not end",
            why="its agent may wait for somebody",
            fix="look at the agent",
        ) from error


def install_statement(board: Board, place: Place, digest: str, signed: Signed) -> None:
    """Put a statement and its signature beside a staged release, and look at all of it there."""
    place_statement(
        board,
        place,
        digest,
        statement=signed.statement,
        signature=signed.signature,
        allowed=signed.allowed,
    )
    verify_release(board, place, digest, signed.allowed)


def read_signers(board: Board, place: Place) -> str:
    """Return the lines of the signers that a board asks for; "" when there are none."""
    with scratch() as folder:
        local = folder / "allowed_signers"
        try:
            board.get(place.root / local.name, local, limit=MANIFEST_LIMIT, timeout=QUICK)
        except BoardIncompatible:
            return ""
        return local.read_text(errors="replace")


def verify_release(board: Board, place: Place, digest: str, allowed: str) -> int:
    """Verify, by what the board gives out, who signed a release and that it is that to the byte.

    Returns its serial. Raises DeployFailed for a release that is not signed, by nobody allowed,
    for something else, or that has a file which differs.
    """
    folder = place.release(digest)
    with scratch() as local:
        try:
            for each in (STATEMENT, SIGNATURE):
                board.get(folder / each, local / each, limit=_SMALL, timeout=QUICK)
            board.get(
                folder / "manifest.json", local / "manifest.json",
                limit=MANIFEST_LIMIT, timeout=QUICK,
            )  # fmt: skip
            statement = (local / STATEMENT).read_text()
            signature = (local / SIGNATURE).read_text()
        except (BoardIncompatible, UnicodeDecodeError) as error:
            raise _refused(digest, f"it is not signed ({error})") from error
        manifest = (local / "manifest.json").read_bytes()
    problem = find_forgery(statement, signature, allowed)
    match = _STATEMENT.fullmatch(statement)
    if problem or match is None:
        raise _refused(digest, problem or "the statement cannot be read")
    if (match["app"], match["digest"]) != (place.app, digest):
        raise _refused(digest, f"it is signed as {match['app']} {match['digest'][:12]}")
    _check_files(board, place, digest, manifest, target=match["target"])
    return int(match["serial"])


def _check_files(board: Board, place: Place, digest: str, manifest: bytes, *, target: str) -> None:
    if hashlib.sha256(manifest).hexdigest() != digest:
        raise _refused(digest, "its manifest is not the one that was signed")
    try:
        listed = _Listed.model_validate_json(manifest)
    except ValidationError as error:
        raise _refused(digest, "its manifest cannot be read") from error
    if listed.target != target:
        raise _refused(digest, f"it is signed for {target} and compiled for {listed.target}")
    arguments = [str(place.release(digest))]
    for each in listed.files:
        arguments += [check_digest(each.sha256), check_name(each.name, "file of a release")]
    timeout = hash_timeout(sum(each.size for each in listed.files))
    run_script(
        board, _CHECK_NAMED, arguments, doing="verify the signed release", timeout=timeout
    )  # fmt: skip


def _refused(digest: str, why: str) -> DeployFailed:
    return DeployFailed(
        f"release {digest[:12]} is refused: its signature does not hold",
        why=why,
        fix="deploy it again with --sign KEY, or look who wrote to the board",
    )
