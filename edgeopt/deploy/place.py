"""Where deployed things lie on a board, and which names they may have."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from edgeopt.artifact import Release
from edgeopt.board.script import QUICK, SLOWEST_LINK
from edgeopt.errors import ConfigError

#: Starts with a letter or digit: "..", ".tmp-x" and "-rf" can never be names.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
#: The figures of a line of df(1): all, used, free.
_NUMBERS = re.compile(r"\s(\d+)\s+(\d+)\s+(-?\d+)\s+(?:\d+%|-)\s+/")
_ROOT = re.compile(r"(~|~?/[^\x00-\x1f\x7f]*)")

#: Seconds to hash a whole release of unknown size: 1.5 GB at the 5 MB/s of an emulated board.
CHECK_TIMEOUT = 300.0
#: Slowest hashing seen: 5 MB/s in busybox under emulation; five times slower still passes.
_HASH_RATE = 1e6


@dataclass(frozen=True, slots=True)
class Place:
    """One application under one deploy directory of a board."""

    #: Absolute POSIX path; "~" is already resolved.
    root: PurePosixPath
    app: str

    @property
    def home(self) -> PurePosixPath:
        """The application's folder: releases, links, history."""
        return self.root / "apps" / self.app

    def object(self, sha256: str) -> PurePosixPath:
        """Return the path of a verified object."""
        return self.root / "objects" / sha256

    def part(self, sha256: str) -> PurePosixPath:
        """Return the path of an object while it is uploaded."""
        return self.root / "objects" / f"{sha256}.part"

    def chunks(self, sha256: str, *, coming: bool = False) -> PurePosixPath:
        """Return the path of the list of an object's chunks, or of that while it is uploaded."""
        return self.root / "objects" / f"{sha256}.chunks{'.part' if coming else ''}"

    def release(self, digest: str) -> PurePosixPath:
        """Return the folder of a release."""
        return self.home / "releases" / digest


def place_of(release: Release) -> Place:
    """Return where a release lies, from its path <root>/apps/<app>/releases/<digest>."""
    path = PurePosixPath(release.path)
    place = Place(root=path.parents[3], app=check_name(release.app, "application"))
    if path != place.release(check_digest(release.digest)):
        raise ConfigError(
            f"{release.path} is not the folder of a release of '{release.app}'",
            why="it must end with apps/<app>/releases/<digest>",
        )
    return place


def check_name(name: str, what: str) -> str:
    """Return the name, or refuse one that could mean a path or an option."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"{name!r} cannot be the name of {'an' if what[0] in 'aeiou' else 'a'} {what}",
            why="it must match [A-Za-z0-9_][A-Za-z0-9._-]{0,63}",
            fix="use letters, digits, '.', '_' and '-' only",
        )
    return name


def check_digest(digest: str) -> str:
    """Return the digest, or refuse what is not a SHA-256 in hexadecimal."""
    if _DIGEST.fullmatch(digest) is None:
        raise ConfigError(f"{digest!r} is not a SHA-256 digest", why="64 hexadecimal digits")
    return digest


def known_digest(name: str) -> str:
    """Return the name when it is a digest; what else a board may say is as good as nothing."""
    return name if _DIGEST.fullmatch(name) else ""


def parse_free(line: str, *, unit: int = 1) -> int | None:
    """Return how much of a file system is free to us by a line of df -P, in `unit` each.

    None where it does not say: those that make inodes as they go report none at all.
    """
    found = _NUMBERS.search(line)
    return int(found[3]) * unit if found and int(found[1]) > 0 else None


def check_root(root: PurePosixPath) -> PurePosixPath:
    """Return the deploy directory, or refuse one that is relative or not printable."""
    if _ROOT.fullmatch(str(root)) is None or ".." in root.parts:
        raise ConfigError(
            f"{str(root)!r} cannot be a deploy directory",
            why="it must be an absolute path, or start with '~/'",
            fix="set deploy_dir to a path like '~/.edgeopt' or '/opt/edgeopt'",
        )
    return root


def hash_timeout(size: int) -> float:
    """Return how many seconds hashing so many bytes on a board may take."""
    return QUICK + size / _HASH_RATE


def link_timeout(size: int) -> float:
    """Return how many seconds sending so many bytes may take."""
    return QUICK + size / SLOWEST_LINK
