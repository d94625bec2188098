"""Running compiled code in this process: what the device program does, for tests and benchmarks."""

import ctypes
import os
import platform

import tvm
from tvm import relax

from edgeopt.compile.build import build_executable
from edgeopt.compile.cpu import Cpu
from edgeopt.errors import BoardIncompatible

#: arch_prctl of x86-64, its request for a feature whose state is large, and the number of tile
#: data (Linux: arch/x86/include/uapi/asm/prctl.h, Documentation/arch/x86/xstate.rst).
_ARCH_PRCTL = 158
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18


def open_machine(planned: tvm.IRModule, cpu: Cpu) -> relax.VirtualMachine:
    """Generate code for this machine and load it.

    Raises BoardIncompatible where the kernel refuses registers that the CPU's code uses.
    """
    if cpu.amx:
        allow_tiles()
    return relax.VirtualMachine(build_executable(planned, cpu), tvm.cpu())


def allow_tiles() -> None:
    """Ask the kernel for AMX's tile registers, for all threads of this process, now and later.

    Linux gives their 8 KiB of state only to who asks: the first use would end the process.
    """
    if platform.machine() != "x86_64":
        raise _refused("this is no x86-64 machine")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) != 0:
        raise _refused(os.strerror(ctypes.get_errno()))


def _refused(why: str) -> BoardIncompatible:
    return BoardIncompatible(
        "this machine does not give tile registers (AMX) to its processes",
        why=why,
        fix="compile for a target whose features have no amx_int8, or use Linux 5.16 or later",
    )
