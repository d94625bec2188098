"""The disk of the emulated board: a Debian arm64 system made of packages, without root.

Nothing is mounted and no package script runs: the archives' files are laid out, a first process of
thirty lines replaces systemd, and `mke2fs -d` makes the file system. The recipe's digest names the
result, so a changed recipe is another image and an unchanged one is built once.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from filelock import FileLock

from edgeopt.board.initramfs import pack_initramfs, unpack_kernel
from edgeopt.board.rootfs import FILES, FIRST, FOLDERS, MODULES
from edgeopt.errors import ConfigError
from edgeopt.scratch import scratch

#: The name under which the board's host key is pinned, whatever port it listens on.
HOST_ALIAS = "edgeopt-board"
USER = "edge"

_FORMAT = 2
_PACKAGES = ("busybox-static", "libc6", "libgcc-s1", "libstdc++6", "openssh-server")
_KERNEL = "linux-image-cloud-arm64"
#: Apparent size of the disk; the file is sparse. The system takes 0.1 GB, releases have the rest.
_DISK = "2G"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

#: Host programs and the Debian packages that carry them.
_TOOLS = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "mke2fs": "e2fsprogs",
    "qemu-system-aarch64": "qemu-system-arm",
    "tar": "tar",
    "tune2fs": "e2fsprogs",
}

#: As dependencies of openssh-server only libraries are needed: no package script ever runs.
_LIBRARY = re.compile(r"(?!.*perl)(lib|zlib).*")


@dataclass(frozen=True, slots=True)
class Image:
    """The files that one emulated board boots from and is reached with."""

    digest: str
    path: Path

    @property
    def kernel(self) -> Path:
        """The uncompressed kernel, as QEMU's -kernel takes it."""
        return self.path / "kernel"

    @property
    def initramfs(self) -> Path:
        """The first file system: busybox and the drivers of the disk and the network."""
        return self.path / "initramfs.gz"

    @property
    def disk(self) -> Path:
        """The raw ext4 disk; never written to, each boot writes to a snapshot."""
        return self.path / "disk.ext4"

    @property
    def identity(self) -> Path:
        """The private key that logs in as USER."""
        return self.path / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The board's own host key, under HOST_ALIAS."""
        return self.path / "known_hosts"


def ensure_image(cache: Path, *, mirror: str = "") -> Image:
    """Return the image in cache, building it first when it is not there.

    The mirror is the one that this machine's apt uses. Elsewhere it is given, as
    "http://MIRROR/debian SUITE"; the archive's signature is checked either way.
    """
    digest = recipe_digest()
    image = Image(digest=digest, path=cache / "boards" / "images" / digest)
    if image.path.is_dir():
        return image
    check_tools(_TOOLS)
    if not _KEYRING.is_file():
        raise ConfigError(
            "cannot build the emulated board: there is no key to check Debian's archive with",
            why=f"{_KEYRING} is not there",
            fix="sudo apt-get install -y debian-archive-keyring",
        )
    image.path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{image.path}.lock"):
        if not image.path.is_dir():
            with scratch(image.path.parent, ".building-") as draft:
                _build(draft, sources=_sources(mirror))
                (draft / "image").rename(image.path)
    return image


def keep_disk(image: Image, folder: Path) -> Path:
    """Return a board's own disk in folder, a journaling copy of the image's, which it makes once.

    What was kept of another image is removed: its keys are not ours any more.
    """
    disk = folder / f"disk-{image.digest}.ext4"
    if not disk.exists():
        check_tools(_TOOLS)
        for each in folder.glob("disk-*"):
            each.unlink()
        part = disk.with_suffix(".part")
        _call(["cp", "--sparse=always", image.disk, part])
        _call(["tune2fs", "-j", part])
        part.rename(disk)
    return disk


def recipe_digest() -> str:
    """Name the image by everything here that decides its content, package versions excepted."""
    recipe = [_FORMAT, _PACKAGES, _KERNEL, _DISK, MODULES, FIRST, FILES]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def check_tools(tools: dict[str, str]) -> None:
    """Raise ConfigError naming the package of every program that this machine lacks."""
    missing = [name for name in tools if _tool(name) is None]
    if missing:
        packages = " ".join(sorted({tools[name] for name in missing}))
        raise ConfigError(
            "the emulated board needs programs that are not on this machine",
            why=f"not found: {', '.join(missing)}",
            fix=f"sudo apt-get install -y --no-install-recommends {packages}",
        )


def _tool(name: str) -> str | None:
    # Debian leaves the sbin directories, where mke2fs is, out of a plain user's path.
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _call(
    argv: Sequence[str | Path],
    *,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    program, *arguments = map(str, argv)
    done = subprocess.run(
        [_tool(program) or program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
    )
    if done.returncode != 0:
        raise ConfigError(
            f"cannot build the emulated board: {program} failed with status {done.returncode}",
            why=done.stderr.strip()[-2000:],
            fix="check the network and this machine's apt sources, then run it again",
        )
    return done.stdout


def _sources(mirror: str) -> tuple[str, ...]:
    """List (uri suite) of the archive's main component, as one line of text each."""
    if mirror:
        return (mirror,)
    listed = _call(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(COMPONENT)|$(REPO_URI) $(CODENAME)"]
    )
    rows = [line.split("|", 2) for line in listed.splitlines() if line.count("|") == 2]
    found = {row[2] for row in rows if row[0] == "Debian" and row[1] == "main"}
    if not found:
        raise ConfigError(
            "cannot build the emulated board: this machine's apt has no Debian archive",
            why="its packages are what the board's system is made of",
            fix="name a mirror, as in --mirror 'http://MIRROR/debian bookworm'; or, on Debian, "
            "run 'apt-get update' first",
        )
    return tuple(sorted(found))


def _build(work: Path, *, sources: tuple[str, ...]) -> None:
    """Build the image in work/image."""
    image, root, kernel = work / "image", work / "root", work / "kernel"
    for folder in (image, root, kernel):
        folder.mkdir()
    debs, kernel_deb = _download(work / "apt", sources)
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for deb in debs:
        _extract(deb, root)
    _extract(kernel_deb, kernel)
    _make_keys(image)
    _lay_out(root, image)
    _make_boot(kernel, root, image)
    disk = image / "disk.ext4"
    options = ["-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-E", "root_owner=0:0"]
    _call(["mke2fs", *options, "-d", root, disk, _DISK])
    names = [each.name for each in sorted([*debs, kernel_deb])]
    (image / "packages.txt").write_text("".join(f"{name}\n" for name in names))


def _download(folder: Path, sources: tuple[str, ...]) -> tuple[list[Path], Path]:
    """Fetch the system's packages and the kernel's, checked against the archive's signature."""
    environment = {"APT_CONFIG": str(_configure_apt(folder, sources))}
    _call(["apt-get", "update", "-qq"], environment=environment)
    wanted = _call(
        ["apt-get", "install", "-qq", "--print-uris", *_PACKAGES], environment=environment
    )
    # Each line is: 'uri' name_version_architecture.deb size digest.
    names = {line.split()[1].split("_")[0] for line in wanted.splitlines()}
    names = {name for name in names if name in _PACKAGES or _LIBRARY.fullmatch(name)}
    # The ABI number in the kernel's name moves with each update: the metapackage knows it.
    depends = _call(["apt-cache", "depends", _KERNEL], environment=environment)
    match = re.search(r"Depends: (linux-image-\S+)", depends)
    assert match is not None, depends
    archives = folder / "archives"
    archives.mkdir()
    arguments = ["apt-get", "download", "-qq", *sorted(names), match[1]]
    _call(arguments, environment=environment, folder=archives)
    debs = sorted(archives.glob("*.deb"))
    kernel = next(each for each in debs if each.name.startswith("linux-image-"))
    return [each for each in debs if each != kernel], kernel


def _configure_apt(folder: Path, sources: tuple[str, ...]) -> Path:
    """Write an apt configuration of its own for arm64, so that the host's stays as it is."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    trusted = f"[arch=arm64 signed-by={_KEYRING}]"
    (folder / "sources.list").write_text(
        "".join(f"deb {trusted} {source} main\n" for source in sources)
    )
    config = folder / "apt.conf"
    config.write_text(
        'APT::Architecture "arm64";\n'
        'APT::Architectures {"arm64";};\n'
        'APT::Install-Recommends "false";\n'
        # Its unprivileged user cannot enter a private cache directory.
        'APT::Sandbox::User "root";\n'
        'Acquire::Languages "none";\n'
        f'Dir::State "{folder}/state";\n'
        f'Dir::State::lists "{folder}/state/lists";\n'
        f'Dir::State::status "{folder}/status";\n'
        f'Dir::Cache "{folder}/cache";\n'
        f'Dir::Etc::sourcelist "{folder}/sources.list";\n'
        'Dir::Etc::sourceparts "-";\n'
    )
    return config


def _extract(deb: Path, root: Path) -> None:
    """Lay out a package's files, documentation aside; /lib and /bin stay links into /usr."""
    options = ["--keep-directory-symlink", "--no-same-owner", "-x", "-f", "-"]
    excluded = [f"--exclude=./usr/share/{name}/*" for name in ("doc", "locale", "man")]
    tar = [_tool("tar") or "tar", "-C", str(root), *options, *excluded]
    with subprocess.Popen(
        [_tool("dpkg-deb") or "dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE
    ) as unpack:
        done = subprocess.run(tar, stdin=unpack.stdout, stderr=subprocess.PIPE, check=False)
    if unpack.returncode != 0 or done.returncode != 0:
        raise ConfigError(
            f"cannot build the emulated board: cannot unpack {deb.name}",
            why=done.stderr.decode(errors="replace").strip()[-2000:],
            fix="check the free space of the cache directory",
        )


def _make_keys(image: Path) -> None:
    """Make the user's key and the board's; the board's is pinned in known_hosts."""
    for name in ("id_ed25519", "host_ed25519"):
        # ssh-keygen would refuse to work for a user without an account, as containers have them.
        key = Ed25519PrivateKey.generate()
        private = image / name
        private.touch(mode=0o600)
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        (image / f"{name}.pub").write_text(f"{public} {HOST_ALIAS}\n")
    (image / "known_hosts").write_text(f"{HOST_ALIAS} {public}\n")


def _lay_out(root: Path, image: Path) -> None:
    """Add users, configuration, keys and the first process to the packages' files."""
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (root / name).write_text(text)
    (root / "usr/bin/sh").symlink_to("busybox")
    for name in ("edgeopt-init", "reboot"):
        (root / "usr/sbin" / name).chmod(0o755)
    (root / "etc/shadow").chmod(0o600)
    key = root / "etc/ssh/ssh_host_ed25519_key"
    shutil.copyfile(image / "host_ed25519", key)
    key.chmod(0o600)
    allowed = root / "home/edge/.ssh/authorized_keys"
    shutil.copyfile(image / "id_ed25519.pub", allowed)
    for path, mode in ((allowed, 0o600), (allowed.parent, 0o700), (root / "root", 0o700)):
        path.chmod(mode)


def _make_boot(kernel: Path, root: Path, image: Path) -> None:
    """Make the kernel and the initramfs from the kernel package's files."""
    packed = next((kernel / "boot").glob("vmlinuz-*")).read_bytes()
    (image / "kernel").write_bytes(unpack_kernel(packed))
    modules = {path.name: path for path in (kernel / "lib" / "modules").rglob("*.ko*")}
    found: dict[str, bytes] = {}
    for name in MODULES:
        # A driver that is not a module is built into the kernel.
        if f"{name}.ko" in modules:
            found[name] = modules[f"{name}.ko"].read_bytes()
    files: dict[str, tuple[int, bytes]] = {
        f"modules/{name}.ko": (stat.S_IFREG | 0o644, data) for name, data in found.items()
    }
    files["bin/busybox"] = (stat.S_IFREG | 0o755, (root / "bin/busybox").read_bytes())
    first = FIRST.format(modules=" ".join(found))
    files["init"] = (stat.S_IFREG | 0o755, first.encode())
    for name in ("bin", "dev", "disk", "modules", "proc", "sys"):
        files[name] = (stat.S_IFDIR | 0o755, b"")
    (image / "initramfs.gz").write_bytes(gzip.compress(pack_initramfs(files), 1, mtime=0))
