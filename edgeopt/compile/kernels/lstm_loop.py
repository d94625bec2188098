"""The loops of an LSTM whose steps are calls of assembly, written with TVM's IR builder.

One row, float32, no variants: lstm_row computes a step, and lstm_inputs what steps start from.
"""

from dataclasses import dataclass
from typing import TypeAlias

from tvm import tirx
from tvm.tirx.script import builder

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels import lstm_inputs, lstm_row
from edgeopt.compile.kernels.functions import number
from edgeopt.compile.kernels.recurrent import Recurrent, Tiling
from edgeopt.compile.kernels.recurrent_loop import define_layer
from edgeopt.compile.kernels.tile import round_up

Index: TypeAlias = tirx.Expr

_HEIGHT, _LANES = lstm_inputs.HEIGHT, 4


def called_shapes(layer: Recurrent, tiling: Tiling) -> dict[str, tuple[int, ...]]:
    """List the shapes of the arguments by name, in order, without the outputs: all float32.

    Given inputs, x [steps, inputs], their weights as pack_columns leaves them and the bias; else
    what these give. Columns are by direction, panel, gate and unit.
    """
    directions = len(layer.reverse)
    columns = directions * layer.gates * tiling.width
    panel = (directions, tiling.panels, layer.depth, layer.gates, tiling.units)
    shapes: dict[str, tuple[int, ...]] = {"projected": (layer.steps, columns)}
    if layer.inputs:
        shapes = {
            "x": (layer.steps, layer.inputs),
            "columns": (layer.inputs * columns,),
            "bias": (columns,),
        }
    shapes["weight"] = panel
    if layer.initial_hidden:
        shapes["hidden"] = layer.state_shape()
    if layer.initial_cell:
        shapes["cell"] = layer.state_shape()
    return shapes


def define_called(cpu: Cpu, layer: Recurrent, tiling: Tiling) -> tirx.PrimFunc:
    """Write the function of a layer: arguments of called_shapes, then Y, Y_h and Y_c."""
    states = (len(layer.reverse), tiling.width)

    def write(named: dict[str, tirx.Buffer], outputs: list[tirx.Buffer]) -> None:
        _Loops(
            cpu,
            layer,
            tiling,
            named,
            outputs,
            builder.sblock_alloc_buffer((2, *states), "float32"),
            builder.sblock_alloc_buffer(states, "float32"),
        ).write()

    shapes = called_shapes(layer, tiling)
    arguments = {name: (shape, "float32") for name, shape in shapes.items()}
    return define_layer(layer, arguments, write)


def _call(function: tuple[str, str], *arguments: Index) -> None:
    """Write the call of a function in assembly, by its name and module."""
    name, module = function
    with builder.attr(tirx.const(0, "int32"), "pragma_import_llvm", module):
        builder.evaluate(tirx.call_extern("int32", name, *arguments))


def _copy(into: tirx.Buffer, at: tuple[Index | int, ...], value: Index) -> None:
    builder.buffer_store(into, value, list(at))


@dataclass(frozen=True, slots=True)
class _Loops:
    """Writes the loops of one layer into the builder that is open."""

    cpu: Cpu
    layer: Recurrent
    tiling: Tiling
    named: dict[str, tirx.Buffer]
    outputs: list[tirx.Buffer]
    #: Two states, of which each step reads one and writes the other, and the cell's.
    state: tirx.Buffer
    kept: tirx.Buffer

    def write(self) -> None:
        """Write the inputs' share, then all directions."""
        projected = self._project() if self.layer.inputs else self.named["projected"]
        loop = builder.parallel if self.tiling.shared else builder.serial
        with loop(0, len(self.layer.reverse)) as direction:
            self._start(direction)
            with builder.serial(0, self.layer.steps) as step:
                self._call_step(projected, direction, step)
            self._store_last(direction)

    def _project(self) -> tirx.Buffer:
        """Write x @ W + bias, a tile of columns after the other, of which each takes all rows."""
        layer = self.layer
        (columns,) = (int(size) for size in self.named["bias"].shape)
        projected = builder.sblock_alloc_buffer((layer.steps, columns), "float32")
        # TVM shrinks a buffer to what it sees accessed, and what assembly does it does not see.
        _copy(projected, (layer.steps - 1, columns - 1), number(0.0))
        whole, left = divmod(layer.steps, _HEIGHT)
        packed = self._pack_rows(0, whole, _HEIGHT)
        rest = self._pack_rows(whole * _HEIGHT, 1, left) if left else packed
        tiles = lstm_inputs.split_columns(columns)
        full = sum(count == lstm_inputs.VECTORS for _, count in tiles)

        def multiply(tile: Index | int, vectors: int) -> None:
            first = tile * (lstm_inputs.VECTORS * _LANES)
            with builder.serial(0, whole) as block:
                self._call_tile((packed, projected), (block, block * _HEIGHT, first), vectors)
            if left:
                self._call_tile((rest, projected), (0, whole * _HEIGHT, first), vectors, left)

        loop = builder.parallel if self.tiling.shared else builder.serial
        with loop(0, full) as tile:
            multiply(tile, lstm_inputs.VECTORS)
        for place in range(full, len(tiles)):
            multiply(place, tiles[place][1])
        return projected

    def _pack_rows(self, first: int, blocks: int, height: int) -> tirx.Buffer:
        """Write rows of x as [blocks, inputs, height rounded up to 4]; the last may repeat."""
        inputs, x = self.layer.inputs, self.named["x"]
        shape = (blocks, inputs, round_up(height, _LANES))
        packed = builder.sblock_alloc_buffer(shape, "float32")
        with (
            builder.serial(0, blocks) as block,
            builder.serial(0, inputs) as k,
            builder.vectorized(0, shape[-1]) as lane,
        ):
            row = first + block * height + lane
            if height % _LANES:
                row = tirx.min(row, self.layer.steps - 1)
            _copy(packed, (block, k, lane), x[row, k])
        return packed

    def _call_tile(
        self,
        buffers: tuple[tirx.Buffer, tirx.Buffer],
        at: tuple[Index | int, Index | int, Index | int],
        vectors: int,
        height: int = _HEIGHT,
    ) -> None:
        (packed, projected), (block, row, first) = buffers, at
        inputs = self.layer.inputs
        name = lstm_inputs.name_inputs(height, vectors)
        _call(
            (name, lstm_inputs.write_inputs(height, vectors)),
            tirx.address_of(packed[block, 0, 0]),
            tirx.address_of(self.named["columns"][first * inputs]),
            tirx.address_of(projected[row, first]),
            tirx.const(inputs, "int64"),
            tirx.address_of(self.named["bias"][first]),
            tirx.const(4 * int(projected.shape[1]), "int64"),
        )

    def _start(self, direction: Index) -> None:
        """Set the states to zero, or to what the model gives."""
        for buffer, at, name in (
            (self.state, (0, direction), "hidden"),
            (self.kept, (direction,), "cell"),
        ):
            with builder.vectorized(0, self.tiling.width) as unit:
                _copy(buffer, (*at, unit), number(0.0))
            if name in self.named:
                with builder.serial(0, self.layer.hidden) as unit:
                    value = self.named[name][self._state_index(direction, unit)]
                    _copy(buffer, (*at, unit), value)

    def _state_index(self, direction: Index, unit: Index) -> tuple[Index | int, ...]:
        return (0, direction, unit) if self.layer.batch_first else (direction, 0, unit)

    def _call_step(self, projected: tirx.Buffer, direction: Index, step: Index) -> None:
        """Write one step; assembly writes whole panels, so that a ragged one is copied to Y."""
        layer, vectors = self.layer, self.tiling.vectors
        back = layer.steps - 1 - step
        time = back if all(layer.reverse) else step
        if len(layer.reverse) == 2:
            time = tirx.Select(direction.equal(0), step, back)
        now, new = tirx.floormod(step, 2), tirx.floormod(step + 1, 2)
        blocks: Index | int = layer.depth
        if not layer.initial_hidden:
            # The first step starts from zeros: its sum is empty.
            blocks = tirx.min(step, 1) * layer.depth
        state = self.state[new, direction, 0]
        at = (0, time, direction) if layer.batch_first else (time, direction, 0)
        even = self.tiling.width == layer.hidden
        paired = self.cpu.in_order
        _call(
            (
                lstm_row.name_cell(vectors, paired=paired),
                lstm_row.write_cell(vectors, paired=paired),
            ),
            tirx.address_of(self.state[now, direction, 0]),
            tirx.address_of(self.named["weight"][direction, 0, 0, 0, 0]),
            tirx.address_of(self.kept[direction, 0]),
            tirx.Cast("int64", blocks),
            tirx.address_of(projected[time, direction * (layer.gates * self.tiling.width)]),
            tirx.address_of(state),
            tirx.address_of(self.outputs[0][(*at, 0)] if even else state),
            tirx.const(self.tiling.panels, "int64"),
        )
        if not even:
            with builder.serial(0, layer.hidden) as unit:
                _copy(self.outputs[0], (*at, unit), self.state[new, direction, unit])

    def _store_last(self, direction: Index) -> None:
        """Write Y_h and Y_c."""
        with builder.serial(0, self.layer.hidden) as unit:
            value = self.state[self.layer.steps % 2, direction, unit]
            _copy(self.outputs[1], self._state_index(direction, unit), value)
        with builder.serial(0, self.layer.hidden) as unit:
            value = self.kept[direction, unit]
            _copy(self.outputs[2], self._state_index(direction, unit), value)
