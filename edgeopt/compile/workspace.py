"""The buffers that kernels allocate for themselves while they run."""

import tvm
import tvm_ffi
from tvm import s_tir, tirx

from edgeopt.compile.kernels.rule import sorted_functions

#: TVM puts constant-size buffers of scope "global" below this on the stack
#: (runtime::kMaxStackAlloca); registers are made of those.
_STACK_LIMIT = 1024
#: TVM's workspace pool rounds each allocation up to this.
_WORKSPACE_PAGE = 4096


def planned_workspace(module: tvm.IRModule, threads: int) -> int:
    """Find the most that the kernels' own buffers take at a time, in bytes.

    What is allocated inside a parallel loop, each thread has; small buffers, which are on the
    stack or in registers, are not counted.
    """
    sizes = [_workspace(function, threads) for _, function in sorted_functions(module)]
    return max(sizes, default=0)


def _workspace(function: tirx.PrimFunc, threads: int) -> int:
    module = tvm.IRModule({"main": function})
    passes = tvm.transform.Sequential(
        [
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.CompactBufferAllocation(),
        ]
    )
    body = passes(module)["main"].body
    shared = _allocations(body)
    inside = 0

    def visit(loop: tirx.For) -> None:
        nonlocal inside
        if loop.kind == tirx.ForKind.PARALLEL:
            inside += _allocations(loop.body)

    tvm_ffi.structural_walk(body, (tirx.For, visit), order="post")
    return shared + inside * (threads - 1)


def _allocations(body: tirx.Stmt) -> int:
    """Sum the buffers that a statement allocates, in bytes."""
    total = 0

    def visit(block: s_tir.SBlock) -> None:
        nonlocal total
        total += sum(_allocated(buffer) for buffer in block.alloc_buffers)

    tvm_ffi.structural_walk(body, (s_tir.SBlock, visit), order="post")
    return total


def _allocated(buffer: tirx.Buffer) -> int:
    size = tvm.DataType(str(buffer.dtype)).itemsize
    for extent in buffer.shape:
        size *= int(extent)
    on_stack = buffer.scope() == "global" and size < _STACK_LIMIT
    return 0 if on_stack else -(-size // _WORKSPACE_PAGE) * _WORKSPACE_PAGE
