"""Memory that is freed and asked for again a moment later."""

import ctypes
import platform

#: glibc's malloc.h: bytes at the end of the heap from which they are given back, bytes from which
#: a block is a mapping of its own, and how many heaps threads may have.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep what it frees, where the C library can: glibc alone.

    Copies of a model live for a moment. New pages for each would take longer to get from the
    system than to fill, and what one thread freed another could not use.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    malloc_options = ctypes.CDLL(None).mallopt
    for option, value in ((_ARENA_MAX, 1), (_TRIM_THRESHOLD, _MOST), (_MMAP_THRESHOLD, _MOST)):
        malloc_options(option, value)
