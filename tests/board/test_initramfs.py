"""The boot formats, read back by independent readers where there are any."""

import gzip
import shutil
import stat
import struct
import subprocess

import pytest

from edgeopt.board.initramfs import pack_initramfs, unpack_kernel
from edgeopt.errors import ConfigError

FILES = {
    "init": (stat.S_IFREG | 0o755, b"#!/bin/sh\n"),
    "dev": (stat.S_IFDIR | 0o755, b""),
    "dev/odd": (stat.S_IFREG | 0o600, b"12345"),
}


def test_the_archive_is_read_by_cpio() -> None:
    reader = shutil.which("cpio") or shutil.which("busybox")
    if reader is None:
        pytest.skip("no cpio here; run: sudo apt-get install -y cpio")
    argv = [reader, "-tv"] if reader.endswith("cpio") else [reader, "cpio", "-tv"]
    done = subprocess.run(argv, input=pack_initramfs(FILES), capture_output=True, check=True)
    listed = [line.split() for line in done.stdout.decode().splitlines()]
    assert [(line[0], line[-1]) for line in listed] == [
        ("drwxr-xr-x", "dev"),
        ("-rw-------", "dev/odd"),
        ("-rwxr-xr-x", "init"),
    ]


def test_the_archive_is_the_same_for_any_order_of_its_files() -> None:
    backwards = dict(reversed(FILES.items()))
    assert pack_initramfs(FILES) == pack_initramfs(backwards)
    assert len(pack_initramfs(FILES)) % 4 == 0


def test_kernels_are_unpacked_in_each_of_their_forms() -> None:
    kernel = b"a kernel" * 100
    packed = gzip.compress(kernel)
    header = b"MZ\0\0zimg" + struct.pack("<II8x32s", 64, len(packed), b"gzip")
    assert unpack_kernel(kernel) == kernel
    assert unpack_kernel(packed) == kernel
    assert unpack_kernel(header.ljust(64, b"\0") + packed + b"tail") == kernel
    with pytest.raises(ConfigError, match="zstd"):
        unpack_kernel(header.replace(b"gzip", b"zstd"))
