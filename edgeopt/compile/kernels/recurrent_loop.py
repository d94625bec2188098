"""The loops of a recurrent layer, written with TVM's IR builder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import row_tile
from edgeopt.compile.kernels.functions import number
from edgeopt.compile.kernels.recurrent import (
    KIND,
    STEP,
    Recurrent,
    Tiling,
    argument_shapes,
    output_shapes,
)
from edgeopt.compile.kernels.recurrent_cells import (
    Cell,
    Place,
    update_gru,
    update_lstm,
    update_rnn,
)
from edgeopt.compile.kernels.scheduling import mark

Index: TypeAlias = tirx.Expr


def define_recurrent(cpu: Cpu, layer: Recurrent, tiling: Tiling) -> tirx.PrimFunc:
    """Write the function of a layer: arguments of argument_shapes, then Y, Y_h and Y_c."""

    def write(named: dict[str, tirx.Buffer], outputs: list[tirx.Buffer]) -> None:
        _Loops(cpu, layer, tiling, named, outputs).write()

    return define_layer(layer, argument_shapes(layer, tiling), write)


def define_layer(
    layer: Recurrent,
    arguments: Mapping[str, tuple[tuple[int, ...], str]],
    write: Callable[[dict[str, tirx.Buffer], list[tirx.Buffer]], None],
) -> tirx.PrimFunc:
    """Write a function of one opaque block: arguments, shape and dtype by name, then outputs.

    write is given both by name and in order, within the block.
    """
    with IRBuilder() as made, builder.prim_func(s_tir=True):
        builder.func_attr({"tirx.noalias": True})
        named = {
            name: builder.arg(name, builder.buffer(shape, dtype))
            for name, (shape, dtype) in arguments.items()
        }
        outputs = [
            builder.arg(f"output{number}", builder.buffer(shape, "float32"))
            for number, shape in enumerate(output_shapes(layer))
        ]
        with builder.sblock("root"), builder.sblock("recurrent"):
            builder.reads(*[_whole(buffer) for buffer in named.values()])
            builder.writes(*[_whole(buffer) for buffer in outputs])
            builder.sblock_attr(mark(kind=KIND, pattern="opaque"))
            write(named, outputs)
    function: tirx.PrimFunc = made.get()
    return function


def _whole(buffer: tirx.Buffer) -> object:
    return buffer[tuple(slice(0, int(size)) for size in buffer.shape)]


def _store(buffer: tirx.Buffer, value: Index, *at: Index | int) -> None:
    builder.buffer_store(buffer, value, list(at))


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a tile is: direction, step, panel of units and first row."""

    direction: Index
    step: Index
    panel: Index
    row: Index


@dataclass(slots=True)
class _Loops:
    """Writes the loops of one layer into the builder that is open."""

    cpu: Cpu
    layer: Recurrent
    tiling: Tiling
    named: dict[str, tirx.Buffer]
    outputs: list[tirx.Buffer]
    #: Two states, of which each step reads one and writes the other.
    state: tirx.Buffer = field(init=False)
    #: The cell of an LSTM; the update gate and the reset state of a GRU of two phases.
    kept: list[tirx.Buffer] = field(init=False)
    accumulators: tirx.Buffer = field(init=False)
    staged: tirx.Buffer = field(init=False)

    def write(self) -> None:
        """Write all directions and parts of the batch."""
        layer, tiling = self.layer, self.tiling
        shape = (len(layer.reverse), tiling.part * tiling.parts, tiling.width)
        lasting = {"LSTM": 1, "GRU": 2 * (len(layer.phases) - 1), "RNN": 0}[layer.cell]
        self.state = builder.sblock_alloc_buffer((2, *shape), "float32")
        self.kept = [builder.sblock_alloc_buffer(shape, "float32") for _ in range(lasting)]
        loop = builder.parallel if tiling.shared else builder.serial
        with loop(0, len(layer.reverse) * tiling.parts) as both:
            direction = tirx.floordiv(both, tiling.parts)
            first = tirx.floormod(both, tiling.parts) * tiling.part
            if len(set(layer.activations)) == 1:
                self._run(direction, first, self._cell(0))
                return
            with builder.If(direction.equal(0)):
                with builder.Then():
                    self._run(direction, first, self._cell(0))
                with builder.Else():
                    self._run(direction, first, self._cell(1))

    def _cell(self, direction: int) -> Cell:
        layer = self.layer
        return Cell(
            layer.activations[direction],
            layer.clip,
            layer.input_forget,
            layer.linear_before_reset,
            layer.peepholes,
        )

    def _run(self, direction: Index, first: Index, cell: Cell) -> None:
        """Write one direction of one part of the batch: states, steps, last states."""
        layer, tiling = self.layer, self.tiling
        widest = max(len(phase) for phase in layer.phases)
        self.accumulators = builder.alloc_buffer((tiling.rows, widest, tiling.units), "float32")
        self.staged = builder.alloc_buffer((tiling.rows, STEP), "float32")
        self._start(direction, first)
        with builder.serial(0, layer.steps) as step:
            for phase in range(len(layer.phases)):
                with (
                    builder.serial(0, tiling.panels) as panel,
                    builder.serial(0, tiling.part // tiling.rows) as block,
                ):
                    row = first + block * tiling.rows
                    self._compute(phase, _Spot(direction, step, panel, row), cell)
            self._for_rows(first, lambda row: self._store_step(direction, step, row))
        self._for_rows(first, lambda row: self._store_last(direction, row))

    def _start(self, direction: Index, first: Index) -> None:
        """Set the states to zero, or to what the model gives."""
        zero = number(0.0)
        with builder.serial(0, self.tiling.part) as row:
            with builder.vectorized(0, self.tiling.width) as unit:
                _store(self.state, zero, 0, direction, first + row, unit)
            if self.layer.cell == "LSTM":
                with builder.vectorized(0, self.tiling.width) as unit:
                    _store(self.kept[0], zero, direction, first + row, unit)
        if "hidden" in self.named:
            self._for_rows(first, lambda row: self._load(direction, row, self.state, 0))
        if "cell" in self.named:
            self._for_rows(first, lambda row: self._load(direction, row, self.kept[0]))

    def _load(self, direction: Index, row: Index, into: tirx.Buffer, *lead: int) -> None:
        source = self.named["hidden" if lead else "cell"]
        with builder.serial(0, self.layer.hidden) as unit:
            value = source[self._state_index(direction, row, unit)]
            _store(into, value, *lead, direction, row, unit)

    def _state_index(self, direction: Index, row: Index, unit: Index) -> tuple[Index, ...]:
        return (row, direction, unit) if self.layer.batch_first else (direction, row, unit)

    def _for_rows(self, first: Index, body: Callable[[Index], None]) -> None:
        """Write a loop over the rows of a part that exist."""
        with builder.serial(0, self.tiling.part) as place:
            row = first + place
            if self.tiling.part * self.tiling.parts == self.layer.batch:
                body(row)
                return
            with builder.If(row < self.layer.batch), builder.Then():
                body(row)

    def _length(self, row: Index) -> Index:
        """Read how many steps a row has; never more than the sequence, whatever the user says."""
        if "lengths" not in self.named:
            return tirx.const(self.layer.steps, "int32")
        return tirx.min(self.named["lengths"][self._real(row)], self.layer.steps)

    def _real(self, row: Index) -> Index:
        """Limit a row to those that exist; the ones added to fill a tile repeat the last."""
        padded = self.tiling.part * self.tiling.parts != self.layer.batch
        return tirx.min(row, self.layer.batch - 1) if padded else row

    def _time(self, direction: Index, step: Index, row: Index) -> Index:
        """Find which element of the sequence a step reads: from the row's end if reversed."""
        if not any(self.layer.reverse):
            return step
        back = tirx.max(self._length(row) - 1 - step, 0)
        if all(self.layer.reverse):
            return back
        return tirx.Select(direction.equal(0), step, back)

    def _projected(self, at: _Spot, row: Index, gate: int, unit: Index) -> Index:
        layer, tiling = self.layer, self.tiling
        time, real = self._time(at.direction, at.step, row), self._real(row)
        flat = real * layer.steps + time if layer.batch_first else time * layer.batch + real
        panel = (at.direction * tiling.panels + at.panel) * layer.gates + gate
        return self.named["projected"][flat, panel * tiling.units + unit]

    def _compute(self, phase: int, at: _Spot, cell: Cell) -> None:
        """Write one tile: accumulators, the product, the gates."""
        tiling = self.tiling
        vectors = [(row, vector) for row in range(tiling.rows) for vector in range(tiling.vectors)]
        # Assembly starts from the inputs' share where it lies.
        for row, vector in [] if self._starts_in_place(phase) else vectors:
            for gate in range(len(self.layer.phases[phase])):
                with builder.vectorized(0, tiling.lanes) as lane:
                    unit = vector * tiling.lanes + lane
                    value = self._initial(phase, gate, at, at.row + row, unit)
                    _store(self.accumulators, value, row, gate, unit)
        self._multiply(phase, at)
        if self._takes_row(phase):
            # The sums are in memory; LLVM would interleave unrolled vectors and spill.
            with builder.serial(0, tiling.vectors) as vector:
                self._update(phase, at, cell, (0, vector))
            return
        for place in vectors:
            self._update(phase, at, cell, place)

    def _update(self, phase: int, at: _Spot, cell: Cell, place: tuple[int, Index | int]) -> None:
        """Write what the gates do to one vector of units of one row."""
        self._scale(phase, at, *place)
        vector = self._place(phase, at, *place)
        if self.layer.cell == "LSTM":
            update_lstm(cell, vector)
        elif self.layer.cell == "GRU":
            update_gru(cell, vector, phase)
        else:
            update_rnn(cell, vector)

    def _initial(self, phase: int, place: int, at: _Spot, row: Index, unit: Index) -> Index:
        """Start an accumulator with what is added to the product anyway."""
        gate = self.layer.phases[phase][place]
        if self.layer.scaled:
            return number(0.0)
        return self._added(gate, at, row, unit)

    def _added(self, gate: int, at: _Spot, row: Index, unit: Index) -> Index:
        if self.layer.linear_before_reset and gate == 2:
            return self.named["bias"][at.direction, at.panel, 0, unit]
        return self._projected(at, row, gate, unit)

    def _scale(self, phase: int, at: _Spot, row: int, vector: Index | int) -> None:
        """Apply the scales of an int8 weight to the finished sums."""
        if not self.layer.scaled:
            return
        for place, gate in enumerate(self.layer.phases[phase]):
            with builder.vectorized(0, self.tiling.lanes) as lane:
                unit = vector * self.tiling.lanes + lane
                scale = self.named["scales"][at.direction, at.panel, gate, unit]
                value = self.accumulators[row, place, unit] * scale
                value = value + self._added(gate, at, at.row + row, unit)
                _store(self.accumulators, value, row, place, unit)

    def _multiply(self, phase: int, at: _Spot) -> None:
        """Write the sum over the state, none in a first step that starts from zeros."""
        layer, tiling = self.layer, self.tiling
        blocks = layer.depth // STEP
        extent: Index | int = blocks
        if not layer.initial_hidden:
            extent = tirx.min(at.step, 1) * blocks
        weight = self.named[f"weight{phase}"]
        if self._takes_row(phase):
            self._call_row(phase, at, weight, extent)
            return
        with builder.serial(0, extent) as block:
            for row in range(tiling.rows):
                with builder.vectorized(0, STEP) as k:
                    value = self._source(phase, at, at.row + row, block * STEP + k)
                    _store(self.staged, value, row, k)
            for k in range(STEP):
                for gate in range(len(layer.phases[phase])):
                    for vector in range(tiling.vectors):
                        self._accumulate(weight, at, block * STEP + k, (k, gate, vector))

    def _takes_row(self, phase: int) -> bool:
        """Tell whether a tile is one that the assembly for one row computes."""
        tiling = self.tiling
        plain = self.cpu.machine == "aarch64" and self.layer.dtype == "float32"
        sums = len(self.layer.phases[phase]) * tiling.vectors
        return plain and tiling.rows == 1 and row_tile.row_fits_registers(sums)

    def _starts_in_place(self, phase: int) -> bool:
        """Tell whether what a tile of assembly starts from lies in one piece among the inputs."""
        return self._takes_row(phase) and not self.layer.linear_before_reset

    def _call_row(self, phase: int, at: _Spot, weight: tirx.Buffer, blocks: Index | int) -> None:
        """Let assembly compute the accumulators: the product, and what it is added to."""
        gate = self.layer.phases[phase][0]
        start = self.accumulators[0, 0, 0]
        if self._starts_in_place(phase):
            start = self._projected(at, at.row, gate, tirx.const(0, "int32"))
        sums, first = len(self.layer.phases[phase]) * self.tiling.vectors, tirx.const(0, "int32")
        call = tirx.call_extern(
            "int32",
            row_tile.name_row(sums, paired=self.cpu.in_order),
            tirx.address_of(self._source(phase, at, at.row, first)),
            tirx.address_of(weight[at.direction, at.panel, 0, 0, 0]),
            tirx.address_of(self.accumulators[0, 0, 0]),
            tirx.Cast("int64", blocks * STEP),
            tirx.address_of(start),
        )
        assembly = row_tile.write_row(sums, paired=self.cpu.in_order)
        with builder.attr(first, "pragma_import_llvm", assembly):
            builder.evaluate(call)

    def _accumulate(
        self, weight: tirx.Buffer, at: _Spot, depth: Index, place: tuple[int, int, int]
    ) -> None:
        k, gate, vector = place
        for row in range(self.tiling.rows):
            with builder.vectorized(0, self.tiling.lanes) as lane:
                unit = vector * self.tiling.lanes + lane
                factor = weight[at.direction, at.panel, depth, gate, unit]
                if self.layer.dtype != "float32":
                    factor = tirx.Cast("float32", factor)
                total = self.accumulators[row, gate, unit] + self.staged[row, k] * factor
                _store(self.accumulators, total, row, gate, unit)

    def _source(self, phase: int, at: _Spot, row: Index, k: Index) -> Index:
        if phase:
            return self.kept[1][at.direction, row, k]
        return self.state[tirx.floormod(at.step, 2), at.direction, row, k]

    def _place(self, phase: int, at: _Spot, row: int, vector: Index | int) -> Place:
        """Give the cells their view of one vector of one row."""
        layer, lanes, current = self.layer, self.tiling.lanes, at.row + row
        # The loop that the next store opens: what is read before the store is read in it.
        loops = [builder.vectorized(0, lanes)]
        now, new = tirx.floormod(at.step, 2), tirx.floormod(at.step + 1, 2)

        def inner() -> Index:
            return vector * lanes + loops[-1].vars[0]

        def unit() -> Index:
            return at.panel * self.tiling.units + inner()

        def store(buffer: tirx.Buffer, value: Index, *index: Index | int) -> None:
            with loops.pop():
                _store(buffer, value, *index)
            loops.append(builder.vectorized(0, lanes))

        def within(fresh: Index, old: Index) -> Index:
            if not layer.lengths:
                return fresh
            return tirx.Select(at.step < self._length(current), fresh, old)

        return Place(
            gate=lambda gate: self.accumulators[row, gate, inner()],
            set_gate=lambda gate, value: store(self.accumulators, value, row, gate, inner()),
            before=lambda: self.state[now, at.direction, current, unit()],
            set_state=lambda value: store(self.state, value, new, at.direction, current, unit()),
            kept=lambda which: self.kept[which][at.direction, current, unit()],
            set_kept=lambda which, value: store(
                self.kept[which], value, at.direction, current, unit()
            ),
            projected=lambda gate: self._projected(at, current, gate, inner()),
            peephole=lambda which: self.named["peepholes"][at.direction, at.panel, which, inner()],
            within=within,
        )

    def _store_step(self, direction: Index, step: Index, row: Index) -> None:
        """Write one row of Y; what lies beyond the row's end is zero, in either direction."""
        layer = self.layer
        time = self._time(direction, step, row)
        inside = step < self._length(row)
        if layer.lengths:
            time = tirx.Select(inside, time, step)
        new = tirx.floormod(step + 1, 2)
        with builder.serial(0, layer.hidden) as unit:
            value = self.state[new, direction, row, unit]
            if layer.lengths:
                value = tirx.Select(inside, value, number(0.0))
            index = (row, time) if layer.batch_first else (time,)
            rest = (direction,) if layer.batch_first else (direction, row)
            _store(self.outputs[0], value, *index, *rest, unit)

    def _store_last(self, direction: Index, row: Index) -> None:
        """Write one row of Y_h and Y_c."""
        with builder.serial(0, self.layer.hidden) as unit:
            value = self.state[self.layer.steps % 2, direction, row, unit]
            _store(self.outputs[1], value, *self._state_index(direction, row, unit))
        if self.layer.cell == "LSTM":
            with builder.serial(0, self.layer.hidden) as unit:
                value = self.kept[0][direction, row, unit]
                _store(self.outputs[2], value, *self._state_index(direction, row, unit))
