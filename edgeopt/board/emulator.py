"""The emulated board: a Debian arm64 system under QEMU that stays up between commands.

With instruction counting (-icount shift=0) one nanosecond of its clock is one instruction
executed, and its performance counters count those of a program alone: repeatable, and not a
latency. What is written on it survives as long as it runs, restarts of its system included:
stopping it loses the state, and the next start begins with a fresh disk. A board that is kept has a
disk of its own instead, with a journal, as devices have.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, ValidationError

from edgeopt.board.connect import SLOW
from edgeopt.board.destination import Hop
from edgeopt.board.image import HOST_ALIAS, USER, Image, check_tools, ensure_image, keep_disk
from edgeopt.board.ssh import SshBoard
from edgeopt.errors import BoardUnreachable, ConfigError
from edgeopt.target import Target
from edgeopt.units import format_bytes

_QEMU = "qemu-system-aarch64"
#: Seconds for the system to answer; on a quiet machine it takes three.
_BOOT_TIMEOUT = 240.0
#: Where a target does not say how much memory its board has.
_DEFAULT_RAM = 1 << 30
_MOST_RAM = 4 << 30
#: Below this the kernel and its first file system do not fit.
_LEAST_RAM = 96 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class BoardHandle(BaseModel):
    """One emulated board that runs, as its state file holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: The instance: the target's name, unless another one was given.
    name: str
    target: str
    pid: int
    port: int
    cpu: str
    #: Bytes; less than what was asked for where this machine has not as much to give.
    ram: int
    ram_asked: int
    icount: bool
    #: Whether its disk outlives it.
    kept: bool = False
    #: Digest of the image's recipe, and the folder it is in.
    image: str
    image_path: Path
    #: Seconds from the start of QEMU until SSH answered.
    boot_seconds: float


def default_cache() -> Path:
    """Return the user's cache directory of edgeopt."""
    return Path(user_cache_path("edgeopt"))


def start_board(
    target: Target,
    *,
    cache: Path | None = None,
    icount: bool = True,
    instance: str = "",
    mirror: str = "",
    keep: bool = False,
) -> BoardHandle:
    """Start the target's emulated board, or return the one that runs with the same settings.

    One whose CPU, memory, image, counting or disk differ is an error: stop it first. Different
    instances of one target run side by side. The first start on a machine builds the image.
    keep: its disk is a file, with which later starts that keep it go on.
    """
    root = (cache or default_cache()).absolute()
    name = instance or target.name
    cpu = _cpu(target)
    check_tools({_QEMU: "qemu-system-arm"})
    image = ensure_image(root, mirror=mirror)
    folder = _folder(root, name)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        running = _read_state(folder)
        if running is None:
            return _start(folder, image, target=target, cpu=cpu, icount=icount, keep=keep)
        differing = [
            f"{label}: {has}, wanted {wants}"
            for label, has, wants in (
                ("CPU", running.cpu, cpu),
                ("memory", running.ram_asked, _asked(target)),
                ("image", running.image, image.digest),
                ("counts instructions", running.icount, icount),
                ("keeps its disk", running.kept, keep or running.kept),
            )
            if has != wants
        ]
        if differing:
            raise ConfigError(
                f"the emulated board {name} runs with other settings",
                why="; ".join(differing),
                fix=f"edgeopt board stop {name}",
            )
        return running


def open_emulated(
    target: Target,
    *,
    cache: Path | None = None,
    icount: bool = True,
    instance: str = "",
    mirror: str = "",
    keep: bool = False,
) -> SshBoard:
    """Connect to the target's emulated board as its unprivileged user; start it if need be."""
    handle = start_board(
        target, cache=cache, icount=icount, instance=instance, mirror=mirror, keep=keep
    )
    board = SshBoard(
        (login_hop(handle),), name=f"emulated {handle.name}", kind="emulated", patience=SLOW
    )
    board.connect()
    return board


def login_hop(handle: BoardHandle) -> Hop:
    """Describe how the board is reached: its own key, and its pinned host key."""
    image = Image(digest=handle.image, path=handle.image_path)
    return Hop(
        label=f"emulated {handle.name}",
        host="127.0.0.1",
        port=handle.port,
        user=USER,
        known_as=HOST_ALIAS,
        identities=(image.identity,),
        agent=False,
        known_hosts=(image.known_hosts,),
    )


def shell_command(handle: BoardHandle) -> tuple[str, ...]:
    """Return the ssh command that opens a shell on the board."""
    hop = login_hop(handle)
    options = {
        "IdentityFile": hop.identities[0],
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": hop.known_hosts[0],
        "HostKeyAlias": HOST_ALIAS,
        "StrictHostKeyChecking": "yes",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ("ssh", "-F", "none", *words, "-p", str(hop.port), f"{hop.user}@{hop.host}")


def list_boards(*, cache: Path | None = None) -> tuple[BoardHandle, ...]:
    """Return the emulated boards that run, by name."""
    root = (cache or default_cache()).absolute()
    states = sorted((root / "boards").glob("*/state.json"))
    found = (_read_state(path.parent) for path in states)
    return tuple(handle for handle in found if handle is not None)


def stop_board(name: str, *, cache: Path | None = None) -> bool:
    """Stop one instance and lose its state; False when it was not running."""
    folder = _folder((cache or default_cache()).absolute(), name)
    if not folder.is_dir():
        return False
    with FileLock(folder / "lock"):
        return _clear(folder)


def cut_power(name: str, *, cache: Path | None = None) -> bool:
    """End one instance at once, as a power cut does; False when it was not running.

    What the board had not written to its disk is lost; the disk of one that is kept stays.
    """
    folder = _folder((cache or default_cache()).absolute(), name)
    with FileLock(folder / "lock"):
        running = _read_state(folder)
        if running is not None:
            os.kill(running.pid, signal.SIGKILL)
            _clear(folder)
        return running is not None


def _cpu(target: Target) -> str:
    if target.isa.machine == "aarch64" and target.emulation is not None:
        return target.emulation.cpu
    raise ConfigError(
        f"there is no emulated board for {target.name}",
        why="emulated boards are aarch64, with a CPU that the target's [emulation] names",
        fix="give a board: --board user@host, or, on this machine's own target, --board local",
    )


def _folder(cache: Path, name: str) -> Path:
    if not _NAME.fullmatch(name) or name == "images":
        raise ConfigError(
            f"{name!r} cannot name an emulated board",
            why="a name has letters, digits, '.', '_' and '-' only, at most 64",
            fix="use the target's name, as in 'edgeopt board start rpi4'",
        )
    return cache / "boards" / name


def _asked(target: Target) -> int:
    return min(target.memory.ram or _DEFAULT_RAM, _MOST_RAM)


def _memory(asked: int, name: str) -> int:
    """Return the board's memory in bytes: what is asked, as far as this machine has it to give."""
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available = max(_available(), pages)
    # Half of what there is: the rest of this machine's work goes on.
    ram = asked if asked <= available else available // 2
    if ram < _LEAST_RAM:
        raise ConfigError(
            f"cannot start the emulated board {name}: too little memory",
            why=f"{format_bytes(ram)} for the board; its system needs {format_bytes(_LEAST_RAM)}",
            fix="free memory on this machine, or choose a target with more",
        )
    return ram


def _available() -> int:
    with contextlib.suppress(OSError):
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if match:
            return int(match[1]) * 1024
    return 0


def _start(
    folder: Path, image: Image, *, target: Target, cpu: str, icount: bool, keep: bool
) -> BoardHandle:
    """Start QEMU; a port that was taken in the meantime is replaced by another one."""
    ram = _memory(_asked(target), folder.name)
    _clear(folder)
    drive = f"file={_escaped(image.disk)},snapshot=on"
    if keep:
        drive = f"file={_escaped(keep_disk(image, folder))}"
    why = ""
    for _ in range(3):
        port = _free_port()
        begun = time.monotonic()
        argv = _qemu(folder, image, drive=drive, cpu=cpu, ram=ram, port=port, icount=icount)
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd=folder
        )
        if done.returncode != 0:
            why = done.stderr.strip()
            continue
        pid = int((folder / "pid").read_text())
        with _ended_on_failure(pid, folder):
            _await_ssh(pid, port, folder)
        handle = BoardHandle(
            name=folder.name,
            target=target.name,
            pid=pid,
            port=port,
            cpu=cpu,
            ram=ram,
            ram_asked=_asked(target),
            icount=icount,
            kept=keep,
            image=image.digest,
            image_path=image.path,
            boot_seconds=round(time.monotonic() - begun, 2),
        )
        part = folder / "state.json.part"
        part.write_text(handle.model_dump_json(indent=1) + "\n")
        part.replace(folder / "state.json")
        return handle
    raise BoardUnreachable(
        f"cannot start the emulated board {folder.name}",
        why=why,
        fix=f"check that {_QEMU} runs here: {_QEMU} -M virt -cpu help",
    )


def _qemu(
    folder: Path, image: Image, *, drive: str, cpu: str, ram: int, port: int, icount: bool
) -> list[str]:
    """Write QEMU's command line: one processor, no way out of the board but its SSH port."""
    return [
        *(_QEMU, "-name", f"edgeopt-{folder.name}"),
        *("-M", "virt", "-cpu", cpu, "-smp", "1", "-m", f"{ram >> 20}M"),
        *("-nodefaults", "-display", "none", "-monitor", "none"),
        *("-serial", f"file:{folder / 'serial.log'}"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initramfs)),
        *("-append", "console=ttyAMA0 quiet panic=-1"),
        *("-drive", f"{drive},format=raw,if=none,id=disk,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=disk"),
        *("-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"),
        *(("-icount", "shift=0") if icount else ()),
        *("-daemonize", "-pidfile", str(folder / "pid")),
    ]


def _escaped(path: Path) -> str:
    """Write a path as a value of QEMU's options, in which a comma is doubled."""
    return str(path).replace(",", ",,")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_ssh(pid: int, port: int, folder: Path) -> None:
    """Wait for the SSH banner: QEMU accepts connections long before the board listens."""
    until = time.monotonic() + _BOOT_TIMEOUT
    while time.monotonic() < until:
        if _has_banner(port):
            return
        if not _is_ours(pid, folder):
            break
        time.sleep(0.2)
    serial = folder / "serial.log"
    shown = serial.read_text(errors="replace")[-2000:].strip() if serial.exists() else ""
    raise BoardUnreachable(
        f"the emulated board {folder.name} did not come up",
        why=shown or f"no SSH banner within {_BOOT_TIMEOUT:.0f} s",
        fix=f"see {serial}; if the machine is busy, start it again when it is not",
    )


def _has_banner(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 3) as probe:
        probe.settimeout(3)
        return probe.recv(4) == b"SSH-"
    return False


def _read_state(folder: Path) -> BoardHandle | None:
    """Read the state of a board that runs; one that does not, or not any more, has none."""
    try:
        handle = BoardHandle.model_validate_json((folder / "state.json").read_text())
    except (OSError, ValidationError, json.JSONDecodeError):
        return None
    return handle if _is_ours(handle.pid, folder) else None


def _clear(folder: Path) -> bool:
    """End the board that runs here, with or without a state that can be read; tell if one did."""
    (folder / "state.json").unlink(missing_ok=True)
    try:
        # QEMU writes it: it is there even when whoever started it was killed during the boot.
        pid = int((folder / "pid").read_text())
    except (OSError, ValueError):
        return False
    runs = _is_ours(pid, folder)
    _end(pid, folder)
    return runs


def _is_ours(pid: int, folder: Path) -> bool:
    """Tell whether a process is this board's QEMU, and not a later one with its number."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(folder / "pid").encode() in words


@contextlib.contextmanager
def _ended_on_failure(pid: int, folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _end(pid, folder)
        raise


def _end(pid: int, folder: Path) -> None:
    """End a board's QEMU, first by asking."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for _ in range(50):
            if not _is_ours(pid, folder):
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            time.sleep(0.1)
