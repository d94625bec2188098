"""Any function that reduces and has no kernel of its own: softmax over channels, argmax, products.

Every block is one loop nest. Outputs that lie side by side are folded as vectors; where there is
one output to a nest, lanes fold every so many-th element and are folded last.
"""

from tvm import tirx

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels.elementwise import WORTH_SHARING, schedule_nest
from edgeopt.compile.kernels.scheduling import (
    Block,
    Loop,
    Schedule,
    blocks_of,
    count_steps,
    extent,
    fuse,
    is_reduction,
    vectorize_inner,
)

KIND = "reduction"
#: Types that code generation keeps in vectors: bfloat16 is computed as bits, a value at a time.
_VECTOR_TYPES = ("float16", "float32", "float64", "int", "uint")
#: Vectors of outputs that are folded at a time.
_VECTORS = 4


def schedule_reduction(sch: Schedule, cpu: Cpu) -> None:
    """Schedule a function of blocks, at least one of which reduces."""
    _inline_once(sch)
    for block in blocks_of(sch):
        if is_reduction(sch, block):
            _schedule_fold(sch, cpu, block)
        else:
            schedule_nest(sch, cpu, block)


def _inline_once(sch: Schedule) -> None:
    """Compute in its reader what is read once per element: elsewhere it would be made again."""
    for block in blocks_of(sch):
        readers = sch.get_consumers(block)
        if is_reduction(sch, block) or len(readers) != 1:
            continue
        if count_steps(sch, sch.get_loops(block)) == count_steps(sch, sch.get_loops(readers[0])):
            sch.compute_inline(block)


def _schedule_fold(sch: Schedule, cpu: Cpu, block: Block) -> None:
    outputs, steps = _split_loops(sch, block)
    beside = outputs[-1] if outputs else None
    if not _has_vectors(sch, block):
        _share(sch, block, outputs)
        return
    if beside is None or extent(sch, beside) == 1:
        if not _fold_in_lanes(sch, cpu, block, steps):
            _share(sch, block, outputs)
        return
    share = count_steps(sch, sch.get_loops(block)) >= WORTH_SHARING
    width = extent(sch, beside)
    for vectors in (_VECTORS, 1):
        if width % (vectors * cpu.lanes) == 0:
            width = vectors * cpu.lanes
            break
    groups, inner = sch.split(beside, [None, width])
    sch.reorder(*outputs[:-1], groups, *steps, inner)
    if share:
        sch.parallel(fuse(sch, [*outputs[:-1], groups]))
    vectorize_inner(sch, inner, cpu.lanes)
    sch.decompose_reduction(block, steps[0])


def _split_loops(sch: Schedule, block: Block) -> tuple[list[Loop], list[Loop]]:
    """Return the loops over a block's outputs, and those over what each of them folds."""
    axes, loops = sch.get(block).iter_vars, sch.get_loops(block)
    if len(axes) != len(loops):
        raise ValueError("its loops are not its axes")
    kinds = [int(axis.iter_type) == tirx.IterVar.CommReduce for axis in axes]
    outputs = [loop for loop, folds in zip(loops, kinds, strict=True) if not folds]
    return outputs, [loop for loop, folds in zip(loops, kinds, strict=True) if folds]


def _has_vectors(sch: Schedule, block: Block) -> bool:
    """Tell whether what a block folds is of a type that code generation keeps in vectors."""
    written = [region.source.dtype for region in sch.get(block).writes]
    return all(dtype.startswith(_VECTOR_TYPES) for dtype in written)


def _fold_in_lanes(sch: Schedule, cpu: Cpu, block: Block, steps: list[Loop]) -> bool:
    """Fold in lanes first; False where the elements do not fill them, or are pairs as in argmax.

    Sums take another order by it: their error is smaller, not larger.
    """
    if len(sch.get(block).writes) != 1 or extent(sch, steps[-1]) % cpu.lanes:
        return False
    before = len(sch.get_loops(block)) - len(steps)
    _, lane = sch.split(steps[-1], [None, cpu.lanes])
    lanes = sch.rfactor(lane, factor_axis=0)
    loops = sch.get_loops(lanes)
    outputs, rest, lane = loops[:before], loops[before:-1], loops[-1]
    _share(sch, lanes, outputs)
    vectorize_inner(sch, lane, cpu.lanes)
    sch.decompose_reduction(lanes, rest[0])
    return True


def _share(sch: Schedule, block: Block, outputs: list[Loop]) -> None:
    """Fold different outputs on different cores where that is worth waking them."""
    if outputs and count_steps(sch, sch.get_loops(block)) >= WORTH_SHARING:
        sch.parallel(fuse(sch, outputs))
