"""Reading known_hosts as sshd(8) describes it: several keys per host, hashes, patterns, markers."""

import base64
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path


@dataclass(frozen=True, slots=True)
class KnownKey:
    """A host key that a file vouches for, or revokes."""

    algorithm: str
    blob: bytes
    revoked: bool
    place: str


def read_known_keys(paths: Iterable[Path], name: str) -> tuple[KnownKey, ...]:
    """Return every key that the files hold under name, in their order."""
    return tuple(
        key
        for path in paths
        if path.is_file()
        for key in parse_known_keys(path.read_text(errors="replace"), name, place=str(path))
    )


def parse_known_keys(text: str, name: str, *, place: str) -> tuple[KnownKey, ...]:
    """Return the keys of the lines whose host field matches name; lines unknown are skipped.

    Lines of certificate authorities are skipped: a board with a certificate needs its plain key.
    """
    keys: list[KnownKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
            continue
        if not _matches(words[0], name):
            continue
        try:
            blob = base64.b64decode(words[2], validate=True)
        except ValueError:
            continue
        keys.append(KnownKey(words[1], blob, marker == "@revoked", f"{place}:{number}"))
    return tuple(keys)


def _matches(field: str, name: str) -> bool:
    """Match a hashed name, or a comma-separated list of patterns of which "!" ones exclude."""
    if field.startswith("|1|"):
        salt, _, digest = field[3:].partition("|")
        try:
            computed = hmac.new(base64.b64decode(salt), name.encode(), hashlib.sha1).digest()
            return hmac.compare_digest(computed, base64.b64decode(digest))
        except ValueError:
            return False
    patterns = field.lower().split(",")
    lowered = name.lower()
    if any(each.startswith("!") and _like(lowered, each[1:]) for each in patterns):
        return False
    return any(_like(lowered, each) for each in patterns if not each.startswith("!"))


def _like(name: str, pattern: str) -> bool:
    # Brackets are part of "[host]:port" there, not a set of characters.
    return fnmatchcase(name, pattern.replace("[", "[[]"))


def fingerprint(blob: bytes) -> str:
    """Print a key's fingerprint as ssh-keygen -l does."""
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"
