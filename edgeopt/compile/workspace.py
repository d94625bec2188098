"""The buffers that kernels keep for themselves: they become tensors that main allocates."""

import math
from dataclasses import dataclass, field

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels.rule import sorted_functions
from edgeopt.compile.plan_memory import replace_bindings
from edgeopt.compile.weights import ALIGNMENT

#: TVM puts constant-size buffers of scope "global" below this on the stack
#: (runtime::kMaxStackAlloca); registers are made of those.
_STACK_LIMIT = 1024
#: TVM's workspace pool rounds each allocation up to this.
_WORKSPACE_PAGE = 4096


@dataclass(frozen=True, slots=True)
class _Lent:
    """A function that takes its buffers as trailing arguments, and what they are."""

    function: tirx.PrimFunc
    buffers: tuple[tirx.Buffer, ...]


@dataclass(slots=True)
class _Found:
    """Buffers that a function allocates: once, and once in each thread by their parallel loop."""

    shared: list[tirx.Buffer] = field(default_factory=list)
    loops: list[tuple[tirx.For, list[tirx.Buffer]]] = field(default_factory=list)


def lend_workspaces(module: tvm.IRModule, cpu: Cpu, threads: int) -> tvm.IRModule:
    """Make the kernels' buffers arguments, so that they share the arena with the activations.

    Not those that registers can hold: LLVM keeps only a function's own buffers in them.

    What is allocated inside a parallel loop gets a part for each thread: the loop then runs over
    as many tasks as there are threads, each with a run of the iterations, as TVM divides them.
    """
    least = max(_STACK_LIMIT, 4 * cpu.lanes * cpu.registers + 1)
    lent = {
        str(variable.name_hint): each
        for variable, function in sorted_functions(module)
        if (each := _lend(function, threads, least)).buffers
    }
    if not lent:
        return module
    kept = {v: f for v, f in module.functions.items() if str(v.name_hint) not in lent}
    builder = relax.BlockBuilder(tvm.IRModule(kept, attrs=module.attrs))
    variables = {name: builder.add_func(each.function, name) for name, each in lent.items()}

    def replace(binding: relax.Binding) -> list[relax.Binding]:
        call = binding.value
        if not isinstance(call, relax.Call) or not isinstance(call.op, tvm.ir.GlobalVar):
            return [binding]
        name = str(call.op.name_hint)
        if name not in lent:
            return [binding]
        made = [_allocate(buffer) for buffer in lent[name].buffers]
        arguments = [*call.args, *(each.var for each in made)]
        return [*made, relax.VarBinding(binding.var, relax.Call(variables[name], arguments))]

    return replace_bindings(builder.get(), replace)


def planned_workspace(module: tvm.IRModule, threads: int) -> int:
    """Find the most that the kernels' own buffers take at a time, in bytes.

    What is allocated inside a parallel loop, each thread has; small buffers, which are on the
    stack or in registers, are not counted.
    """
    sizes = [_workspace(function, threads) for _, function in sorted_functions(module)]
    return max(sizes, default=0)


def _allocate(buffer: tirx.Buffer) -> relax.Binding:
    shape = [int(extent) for extent in buffer.shape]
    tensor = relax.op.builtin.alloc_tensor(relax.ShapeExpr(shape), str(buffer.dtype), 0)
    variable = relax.Var("workspace", relax.TensorType(shape, str(buffer.dtype)))
    return relax.VarBinding(variable, tensor)


def _lend(function: tirx.PrimFunc, threads: int, least: int) -> _Lent:
    """Turn a function's buffers of at least so many bytes into parameters."""
    allocated = _allocate_where_used(function)
    found = _find(allocated.body, least)
    body, buffers = allocated.body, list(found.shared)
    for loop, own in found.loops:
        body, parts = _divide(body, loop, own, threads)
        buffers += parts
    if not buffers:
        return _Lent(function, ())
    body = _without(body, {*found.shared, *(each for _, own in found.loops for each in own)})
    parameters = [*allocated.params, *buffers]
    made = tirx.PrimFunc(parameters, body, allocated.ret_type, allocated.attrs)
    return _Lent(made, tuple(buffers))


def _allocate_where_used(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Move allocations to where they are used, and shrink them to what is used there."""
    passes = tvm.transform.Sequential(
        [
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.CompactBufferAllocation(),
        ]
    )
    return passes(tvm.IRModule({"main": function}))["main"]


def _find(body: tirx.Stmt, least: int) -> _Found:
    """Find the buffers that can be lent: those that are accessed by index only."""
    found = _Found()
    pointers: set[tirx.Var] = set()

    def is_lent(buffer: tirx.Buffer) -> bool:
        is_plain = buffer.scope() == "global" and not buffer.strides and buffer not in pointers
        return is_plain and _nbytes(buffer) >= least

    tvm_ffi.structural_walk(body, (tvm.ir.Call, lambda call: pointers.update(_variables(call))))
    inner: set[tirx.Buffer] = set()

    def visit(loop: tirx.For) -> None:
        if loop.kind == tirx.ForKind.PARALLEL:
            buffers = [each for each in _buffers(loop.body) if each not in inner]
            inner.update(buffers)
            found.loops.append((loop, [each for each in buffers if is_lent(each)]))

    tvm_ffi.structural_walk(body, (tirx.For, visit), order="post")
    found.loops = [each for each in found.loops if each[1]]
    outer = [each for each in _buffers(body) if each not in inner]
    found.shared = [each for each in outer if is_lent(each)]
    return found


def _variables(call: tvm.ir.Call) -> list[tirx.Var]:
    return [each for each in call.args if isinstance(each, tirx.Var)]


def _buffers(statement: tirx.Stmt) -> list[tirx.Buffer]:
    """List the buffers that a statement allocates."""
    buffers: list[tirx.Buffer] = []
    tvm_ffi.structural_walk(
        statement, (s_tir.SBlock, lambda block: buffers.extend(block.alloc_buffers)), order="post"
    )
    return buffers


def _divide(
    body: tirx.Stmt, loop: tirx.For, buffers: list[tirx.Buffer], threads: int
) -> tuple[tirx.Stmt, list[tirx.Buffer]]:
    """Run a parallel loop as one task per thread, each with its part of every buffer."""
    extent = int(loop.extent)
    run = -(-extent // threads)
    tasks = -(-extent // run)
    task = tirx.Var("task", loop.loop_var.ty.dtype)
    parts = {each: _part(each, tasks) for each in buffers}
    inner = _redirect(loop.body, parts, task)
    start = task * run
    count = run if extent % run == 0 else tirx.min(run, extent - start)
    serial = tirx.ForKind.SERIAL
    # Annotations name the code that the loop calls.
    notes = loop.annotations
    inner = tirx.For(loop.loop_var, start, count, serial, inner, annotations=notes)
    outer = tirx.For(task, 0, tasks, tirx.ForKind.PARALLEL, inner)

    def replace(each: tirx.For) -> tirx.For:
        return outer if each.loop_var.same_as(loop.loop_var) else each

    return tvm_ffi.structural_map(body, (tirx.For, replace)), list(parts.values())


def _part(buffer: tirx.Buffer, tasks: int) -> tirx.Buffer:
    """Declare what holds a buffer for each task; parts are aligned where it takes little more."""
    shape = [int(extent) for extent in buffer.shape]
    axis = next((i for i, extent in enumerate(shape) if extent > 1), 0)
    longest = shape[axis] + shape[axis] // 10
    rest = _nbytes(buffer) // shape[axis]
    aligned = [n for n in range(shape[axis], longest + 1) if n * rest % ALIGNMENT == 0]
    shape[axis] = aligned[0] if aligned else shape[axis]
    return tirx.decl_buffer([tasks, *shape], str(buffer.dtype), name=str(buffer.name))


def _redirect(body: tirx.Stmt, parts: dict[tirx.Buffer, tirx.Buffer], task: tirx.Var) -> tirx.Stmt:
    """Access the task's part of a buffer instead of the buffer."""

    def load(each: tvm.ir.TensorLoad) -> tvm.ir.TensorLoad:
        part = parts.get(each.source)
        return each if part is None else tirx.BufferLoad(part, [task, *each.indices])

    def store(each: tirx.BufferStore) -> tirx.BufferStore:
        part = parts.get(each.buffer)
        return each if part is None else tirx.BufferStore(part, each.value, [task, *each.indices])

    def region(each: tvm.ir.TensorRegion) -> tvm.ir.TensorRegion:
        part = parts.get(each.source)
        first = tvm.ir.Range.from_min_extent(task, 1)
        return each if part is None else tirx.BufferRegion(part, [first, *each.region])

    callbacks = [
        (tvm.ir.TensorLoad, load),
        (tirx.BufferStore, store),
        (tvm.ir.TensorRegion, region),
    ]
    return tvm_ffi.structural_map(body, callbacks, order="post")


def _without(body: tirx.Stmt, buffers: set[tirx.Buffer]) -> tirx.Stmt:
    """Take the allocations of buffers away."""

    def visit(block: s_tir.SBlock) -> s_tir.SBlock:
        kept = [each for each in block.alloc_buffers if each not in buffers]
        if len(kept) == len(block.alloc_buffers):
            return block
        return s_tir.SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            block.body,
            block.init,
            kept,
            block.match_buffers,
            block.annotations,
        )

    return tvm_ffi.structural_map(body, (s_tir.SBlock, visit), order="post")


def _nbytes(buffer: tirx.Buffer) -> int:
    itemsize = tvm.DataType(str(buffer.dtype)).itemsize
    return math.prod(int(extent) for extent in buffer.shape) * int(itemsize)


def _workspace(function: tirx.PrimFunc, threads: int) -> int:
    body = _allocate_where_used(function).body
    shared = _allocations(body)
    inside = 0

    def visit(loop: tirx.For) -> None:
        nonlocal inside
        if loop.kind == tirx.ForKind.PARALLEL:
            inside += _allocations(loop.body)

    tvm_ffi.structural_walk(body, (tirx.For, visit), order="post")
    return shared + inside * (threads - 1)


def _allocations(body: tirx.Stmt) -> int:
    """Sum the buffers that a statement allocates from the pool, in bytes."""
    return sum(
        -(-_nbytes(each) // _WORKSPACE_PAGE) * _WORKSPACE_PAGE
        for each in _buffers(body)
        if each.scope() != "global" or _nbytes(each) >= _STACK_LIMIT
    )
