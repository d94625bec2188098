"""One arena for everything that a model computes on the way: who lies where in it, and when."""

from collections.abc import Callable

import tvm
from tvm import relax, tirx

from edgeopt.compile.lifetimes import bindings_of, is_allocation, read_allocations
from edgeopt.compile.offsets import place_tensors
from edgeopt.compile.weights import ALIGNMENT

#: Fields of DLTensor as TVM numbers them (TVMStructFieldKind of tirx/builtin.h).
_DATA, _BYTE_OFFSET = 1, 8
#: The one function that plan_arena adds.
MOVE = "move_to_offset"


def plan_arena(module: tvm.IRModule) -> tvm.IRModule:
    """Allocate what main allocates, its outputs included, at fixed offsets of one storage.

    Expects what CallTIRRewrite makes. The storage lives until the last of its tensors is let go:
    outputs stay whole while they are held, and the next run then has a storage of its own.
    """
    main = module["main"]
    allocations = read_allocations(main)
    if not allocations:
        return module
    arena = place_tensors([each.lifetime for each in allocations])
    offsets = {each.variable: at for each, at in zip(allocations, arena.offsets, strict=True)}
    builder = relax.BlockBuilder(module)
    move = builder.add_func(_move_to_offset(), MOVE)
    module = builder.get()
    storage = relax.Var("arena", relax.AnyType())
    size = relax.ShapeExpr([max(arena.size, ALIGNMENT)])
    first = relax.VarBinding(storage, relax.op.memory.alloc_storage(size, 0, "global", "uint8"))

    def place(binding: relax.Binding) -> list[relax.Binding]:
        if not is_allocation(binding.value):
            return [binding]
        offset = offsets[binding.var]
        shape, dtype = binding.value.args[:2]
        tensor = relax.op.memory.alloc_tensor(storage, offset, shape, dtype)
        made = relax.VarBinding(binding.var, tensor)
        return [made, *([run(move, binding.var)] if offset else [])]

    return replace_bindings(module, place, first=first)


def add_forget(module: tvm.IRModule) -> tvm.IRModule:
    """Add the function "forget", which returns nothing.

    The VM holds the last result, and so its arena, until there is another.
    """
    empty = relax.Tuple([])
    forget = relax.Function([], relax.SeqExpr([], empty), relax.TupleType([]), is_pure=True)
    builder = relax.BlockBuilder(module)
    builder.add_func(forget.with_attr("global_symbol", "forget"), "forget")
    return builder.get()


def run(function: tvm.ir.GlobalVar, *arguments: relax.Expr) -> relax.Binding:
    """Bind a call of a loop-level function, which returns nothing."""
    return relax.VarBinding(relax.Var("_", relax.TupleType([])), relax.Call(function, arguments))


def replace_bindings(
    module: tvm.IRModule,
    replace: Callable[[relax.Binding], list[relax.Binding]],
    *,
    first: relax.Binding | None = None,
) -> tvm.IRModule:
    """Replace each binding of main by others, which may follow one in front of all."""
    main = module["main"]
    bindings = [] if first is None else [first]
    for binding in bindings_of(main):
        bindings += replace(binding)
    body = relax.SeqExpr([relax.BindingBlock(bindings)], main.body.body)
    changed = tvm.IRModule(dict(module.functions), attrs=module.attrs)
    function = relax.Function(main.params, body, main.ret_ty, main.is_pure, main.attrs)
    changed.update_func(module.get_global_var("main"), function)
    return relax.transform.Normalize()(changed)


def planned_arena(module: tvm.IRModule) -> int:
    """Return the bytes of the arena of a planned module."""
    sizes = [
        int(binding.value.args[0].values[0])
        for binding in bindings_of(module["main"])
        if isinstance(binding.value, relax.Call)
        and binding.value.op == tvm.ir.Op.get("relax.memory.alloc_storage")
    ]
    return sum(sizes)


def _move_to_offset() -> tirx.PrimFunc:
    """Make the function that adds a tensor's byte_offset to its data pointer.

    Kernels check that byte_offset is 0; the runtime's alloc_tensor leaves the pointer alone.
    """
    tensor = tirx.Var("tensor", "handle")
    data = tirx.tvm_struct_get(tensor, 0, _DATA, "handle")
    offset = tirx.tvm_struct_get(tensor, 0, _BYTE_OFFSET, "uint64")
    moved = tirx.handle_add_byte_offset(data, tirx.Cast("int64", offset))
    body = tirx.SeqStmt(
        [
            tirx.Evaluate(tirx.tvm_struct_set(tensor, 0, _DATA, moved)),
            tirx.Evaluate(tirx.tvm_struct_set(tensor, 0, _BYTE_OFFSET, tirx.const(0, "uint64"))),
        ]
    )
    # Unless every function of a module says "noalias", LLVM is told it of none.
    attributes = {"tirx.is_scheduled": True, "tirx.noalias": True, "s_tir": True}
    return tirx.PrimFunc([tensor], body).with_attr(attributes)
