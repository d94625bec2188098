"""The two boot formats of the emulated board: the initramfs archive and the packed kernel."""

import gzip
import struct
from collections.abc import Mapping

from edgeopt.errors import ConfigError

_GZIP = b"\x1f\x8b"


def pack_initramfs(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Pack {path: (mode, content)} as a "newc" cpio archive, owned by root, without times.

    Format: linux/Documentation/driver-api/early-userspace/buffer-format.rst. Folders come before
    what they hold, because a path sorts before its extensions.
    """
    entries = [
        _entry(name, number, mode=mode, data=data)
        for number, (name, (mode, data)) in enumerate(sorted(files.items()), start=1)
    ]
    return b"".join(entries) + _entry("TRAILER!!!", 0, mode=0, data=b"")


def _entry(name: str, number: int, *, mode: int, data: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, 2 x device, 2 x special device, name size, check.
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + encoded) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def unpack_kernel(data: bytes) -> bytes:
    """Return the plain arm64 kernel of a vmlinuz: plain, gzip, or an EFI image around gzip."""
    if data[:2] == _GZIP:
        return gzip.decompress(data)
    # linux/drivers/firmware/efi/libstub/zboot-header.S: "MZ", 2 bytes, "zimg", offset, size,
    # 8 bytes reserved, the name of the compression.
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        offset, size = struct.unpack_from("<II", data, 8)
        name = data[24:56].split(b"\0")[0].decode(errors="replace")
        if name != "gzip":
            raise ConfigError(
                "cannot build the emulated board: the kernel is packed in a way unknown here",
                why=f"an EFI image compressed with {name!r}; known is gzip",
                fix="name an archive of Debian 12 (bookworm) as the mirror",
            )
        return gzip.decompress(data[offset : offset + size])
    return data
