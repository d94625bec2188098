"""How much memory the device program takes beside a model's weights and activations."""

from edgeopt.runner.toolchain import Linkage, Machine

#: Peak resident bytes after ten inferences of a model that is one addition: the program's touched
#: pages, the C library's, TVM's registries, the virtual machine, stack and heap. A third of it
#: is touched only when a model is opened, so a program without one would say too little.
_RUNTIME_BYTES: dict[tuple[Machine, Linkage], int] = {
    # Debian 12 (Linux 6.1, glibc 2.36) on the emulated Raspberry Pi 4, runs within 16 kB; the
    # largest of 4, where the model was a small classifier whose own pages are taken out.
    ("aarch64", "dynamic"): 3_454_496,
    ("aarch64", "static"): 2_093_056,
    # The 32-bit programs on that same board's 64-bit kernel, with Debian 12's armhf glibc; the
    # largest of 3 and of 4 runs.
    ("arm", "dynamic"): 3_260_416,
    ("arm", "static"): 2_408_448,
    # Linux 6.18, glibc 2.36, whose page cache maps larger pieces of files, now more and now less:
    # the median of 21 plans of silero-vad, less their own pages, which lie within 61 kB of it.
    ("x86_64", "dynamic"): 4_206_280,
    ("x86_64", "static"): 2_097_152,
}


def runtime_bytes(machine: Machine, linkage: Linkage) -> int:
    """Return the peak resident memory that any model needs beside its own, in bytes."""
    return _RUNTIME_BYTES[machine, linkage]
