"""Activations times a matrix of which only blocks with any value are stored.

A block is so many consecutive columns of one row of W [K, N]. A panel is as wide as a block, and
keeps those of its rows that are stored, in order: rows of A take, for each of them, one value of
theirs times that block, so that work and memory shrink with the zeros. Sums stay in registers
(block-sparse panels as in Elsen et al. 2019, Fast Sparse ConvNets, arXiv 1911.09723, turned).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels.functions import number
from edgeopt.compile.kernels.scheduling import Block, Schedule, mark

KIND = "sparse_gemm"
#: Rows of A at a time, beyond which the values that they take lie too far apart for L1.
_MOST_ROWS = 12
#: Rows of W that one row of A takes at a time, at most: each has sums of its own.
_MOST_STEPS = 8

Index: TypeAlias = tirx.Expr
#: A vector of sums as a function of the column within a block.
Value = Callable[[Index], Index]


@dataclass(frozen=True, slots=True)
class Sparse:
    """A matrix [K, N] without its blocks of zeros.

    values: [blocks, width], panel by panel, rows of W ascending within one. rows: [blocks], the
    row of W of each. starts: [panels + 1], the first block of each panel, and how many there are.
    """

    values: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    depth: int
    #: One factor for each column; None: 1.
    scales: np.ndarray | None = None

    @property
    def width(self) -> int:
        """Columns of a block."""
        return int(self.values.shape[1])

    @property
    def columns(self) -> int:
        """Columns of the matrix."""
        return (len(self.starts) - 1) * self.width

    def arguments(self) -> list[np.ndarray]:
        """List what the function takes after A."""
        given = [self.values, self.rows, self.starts]
        return given if self.scales is None else [*given, self.scales]


def pack_sparse(rows: np.ndarray, places: np.ndarray, scales: np.ndarray | None = None) -> Sparse:
    """Sort blocks by panel.

    rows: [blocks + 1, width], of which the first stands for zeros. places: [K, panels], the row of
    each block.
    """
    depth, panels = places.shape
    panel, at = np.nonzero(places.T)
    starts = np.zeros(panels + 1, np.int32)
    np.cumsum(np.bincount(panel, minlength=panels), out=starts[1:])
    kind = np.uint16 if depth <= 1 << 16 else np.int32
    values = rows[places[at, panel]]
    if not len(values):
        # What has no element has no address either: a block that no panel has.
        values, at = rows[:1], np.zeros(1, np.intp)
    return Sparse(np.ascontiguousarray(values), at.astype(kind), starts, depth, scales)


def define_sparse(cpu: Cpu, count: int, weight: Sparse) -> tirx.PrimFunc:
    """Write the function of A [count, K] and a matrix's arguments that gives A @ W."""
    with IRBuilder() as made, builder.prim_func(s_tir=True):
        # TVM cannot count the operations of loops whose length is stored.
        flops = 2 * count * weight.values.size
        builder.func_attr({"tirx.noalias": True, "estimated_flops": flops})
        x = builder.arg("x", builder.buffer((count, weight.depth), "float32"))
        named = [
            builder.arg(f"weight{place}", builder.buffer(each.shape, each.dtype.name))
            for place, each in enumerate(weight.arguments())
        ]
        output = builder.arg("output", builder.buffer((count, weight.columns), "float32"))
        with builder.sblock("root"), builder.sblock("sparse"):
            builder.reads(*[_whole(buffer) for buffer in (x, *named)])
            builder.writes(_whole(output))
            builder.sblock_attr(mark(kind=KIND, pattern="opaque"))
            _Loops(cpu, weight, x, named, output).write()
    function: tirx.PrimFunc = made.get()
    return function


def _whole(buffer: tirx.Buffer) -> object:
    return buffer[tuple(slice(0, int(size)) for size in buffer.shape)]


def choose_rows(cpu: Cpu, count: int, width: int) -> int:
    """Choose how many rows of A share a block: as many as their sums fit registers, alike tiles."""
    vectors = -(-width // cpu.lanes)
    most = (cpu.registers - vectors - 2 - int(cpu.in_order)) // vectors
    tiles = -(-count // max(1, min(most, _MOST_ROWS)))
    return -(-count // tiles)


@dataclass(slots=True)
class _Loops:
    """Writes the loops of one product into the builder that is open."""

    cpu: Cpu
    weight: Sparse
    x: tirx.Buffer
    named: list[tirx.Buffer]
    output: tirx.Buffer

    def write(self) -> None:
        """Write all panels, which cores share."""
        count, starts = int(self.x.shape[0]), self.named[2]
        height = choose_rows(self.cpu, count, self.weight.width)
        whole, rest = divmod(count, height)
        with builder.parallel(0, len(self.weight.starts) - 1) as panel:
            first = starts[panel]
            stored = starts[panel + 1] - first
            with builder.serial(0, whole) as tile:
                self._tile(panel, first, stored, tile * height, height)
            if rest:
                start = tirx.const(whole * height, "int32")
                self._tile(panel, first, stored, start, rest)

    @property
    def lanes(self) -> int:
        """Columns of a vector."""
        return min(self.cpu.lanes, self.weight.width)

    @property
    def vectors(self) -> int:
        """Vectors of a block."""
        return self.weight.width // self.lanes

    def _tile(self, panel: Index, first: Index, stored: Index, row: Index, height: int) -> None:
        """Write the sums of some rows of A over the stored blocks of a panel."""
        chains = height * self.vectors
        steps = max(1, min(_MOST_STEPS, self.cpu.chains // chains))
        sums = builder.alloc_buffer((steps, height, self.weight.width), "float32")
        for place in range(steps * chains):
            step, vector = divmod(place, chains)
            self._vector(sums, lambda _: number(0.0), step, *divmod(vector, self.vectors))
        with builder.serial(0, tirx.floordiv(stored, steps)) as group:
            for step in range(steps):
                self._add(sums, first + group * steps + step, step, row, height)
        if steps > 1:
            with builder.serial(0, tirx.floormod(stored, steps)) as left:
                self._add(sums, first + stored - 1 - left, 0, row, height)
        for place in range(chains):
            self._store(sums, steps, panel, row, divmod(place, self.vectors))

    def _add(self, sums: tirx.Buffer, block: Index, step: int, row: Index, height: int) -> None:
        """Write what one block adds to the sums of all rows."""
        values, rows = self.named[0], self.named[1]
        k = tirx.Cast("int32", rows[block])
        for place in range(height * self.vectors):
            at, vector = divmod(place, self.vectors)

            def total(column: Index, at: int = at) -> Index:
                value = tirx.Cast("float32", values[block, column])
                return sums[step, at, column] + self.x[row + at, k] * value

            self._vector(sums, total, step, at, vector)

    def _vector(self, sums: tirx.Buffer, value: Value, step: int, at: int, vector: int) -> None:
        """Write one vector of sums, as a function of the column within the block."""
        with builder.vectorized(0, self.lanes) as lane:
            column = vector * self.lanes + lane
            builder.buffer_store(sums, value(column), [step, at, column])

    def _store(
        self, sums: tirx.Buffer, steps: int, panel: Index, row: Index, place: tuple[int, int]
    ) -> None:
        at, vector = place
        with builder.vectorized(0, self.lanes) as lane:
            column = vector * self.lanes + lane
            total = sums[0, at, column]
            for step in range(1, steps):
                total = total + sums[step, at, column]
            wanted = panel * self.weight.width + column
            if self.weight.scales is not None:
                total = total * self.named[3][wanted]
            builder.buffer_store(self.output, total, [row + at, wanted])


def schedule_sparse(sch: Schedule, cpu: Cpu, block: Block) -> None:
    """Do nothing: the function is written as it is to run."""
    del sch, cpu, block
