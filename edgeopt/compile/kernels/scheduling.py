"""The few questions and moves that every schedule is made of."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from tvm import s_tir, tirx

#: Block annotations of ours start with this, so that they survive fusion and are recognised.
_PREFIX = "edgeopt."

Schedule: TypeAlias = s_tir.Schedule
Block: TypeAlias = s_tir.schedule.SBlockRV
Loop: TypeAlias = s_tir.schedule.LoopRV


def mark(**values: int | str) -> dict[str, int | str]:
    """Name block annotations, for the attrs of te.compute."""
    return {_PREFIX + key: value for key, value in values.items()}


def marked(sch: Schedule, block: Block, key: str) -> str | None:
    """Read a block annotation as text; None when the block does not carry it."""
    annotations = sch.get(block).annotations
    name = _PREFIX + key
    return _text(annotations[name]) if name in annotations else None


def marked_int(sch: Schedule, block: Block, key: str) -> int:
    """Read a block annotation that must be there, as a number."""
    text = marked(sch, block, key)
    assert text is not None, key
    return int(text)


def _text(value: object) -> str:
    return str(value.value) if isinstance(value, tirx.IntImm) else str(value)


def blocks_of(sch: Schedule) -> list[Block]:
    """List the blocks of a function in program order; none where it is one opaque block."""
    body = sch.mod["main"].body
    if not isinstance(body, s_tir.SBlockRealize) or body.block.name_hint != "root":
        return []
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def name_of(sch: Schedule, block: Block) -> str:
    """Name a block."""
    return str(sch.get(block).name_hint)


def extent(sch: Schedule, loop: Loop) -> int:
    """Count the iterations of a loop, which are constant in every kernel of ours."""
    return int(sch.get(loop).extent)


def count_steps(sch: Schedule, loops: Sequence[Loop]) -> int:
    """Count the iterations of nested loops."""
    return math.prod(extent(sch, loop) for loop in loops)


def is_reduction(sch: Schedule, block: Block) -> bool:
    """Tell whether any axis of a block is a sum, a maximum or the like."""
    return any(int(axis.iter_type) == tirx.IterVar.CommReduce for axis in sch.get(block).iter_vars)


def stored_share(sch: Schedule, block: Block) -> int:
    """Count the values that a block stores in the room of one float32: four codes, one float.

    Codes that are stored together are narrowed together, in half the instructions.
    """
    return max(1, 4 // int(np.dtype(sch.get(block).writes[0].source.dtype).itemsize))


def fuse(sch: Schedule, loops: Sequence[Loop]) -> Loop:
    """Fuse loops into one; a single loop stays as it is."""
    return sch.fuse(*loops) if len(loops) > 1 else loops[0]


def vectorize_inner(sch: Schedule, loop: Loop, lanes: int, *, unroll: bool = True) -> None:
    """Vectorize a loop by at most so many lanes, and unroll what is left of it."""
    length = extent(sch, loop)
    while lanes > 1 and length % lanes:
        lanes //= 2
    if lanes == 1:
        return
    outer, vector = sch.split(loop, [None, lanes])
    sch.vectorize(vector)
    if unroll and length // lanes <= 16:
        sch.unroll(outer)


def inline_all(sch: Schedule, blocks: Sequence[Block]) -> None:
    """Compute these blocks where their values are used."""
    for block in blocks:
        sch.compute_inline(block)
