"""LSTM, GRU and RNN as one loop over time: a panel of weights per block of units, states in place.

The inputs' share of every gate, x @ W + bias, is a product of all steps at once and comes in as
a matrix. One step multiplies the state with panels of R that hold all gates of a block of units
side by side, so that the gates' functions are applied to the accumulators while these are in
registers. A weight of float16 or int8 is widened in the inner loop; scales commute with the sum.
"""

from dataclasses import dataclass

from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels.lstm_row import MOST_VECTORS
from edgeopt.compile.kernels.recurrent_cells import Activation
from edgeopt.compile.kernels.scheduling import Block, Schedule
from edgeopt.compile.kernels.tile import round_up

KIND = "recurrent"

#: Steps of the sum that are unrolled: one vector of NEON, whose lanes multiply by element.
STEP = 4
#: Rows beyond this win nothing: the panel stays in L1 from one tile of rows to the next.
_MOST_ROWS = 8
_MOST_VECTORS = 8
#: Multiplications per part below which waking another core costs more than it saves.
_WORTH_SHARING = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """One recurrent node: sizes, variants, and which optional arguments its function takes."""

    #: "LSTM", "GRU" or "RNN".
    cell: str
    steps: int
    batch: int
    hidden: int
    #: For each direction whether it walks from the end.
    reverse: tuple[bool, ...]
    #: For each direction its functions in ONNX's order.
    activations: tuple[tuple[Activation, ...], ...]
    #: Limit of what goes into any function; 0 for none.
    clip: float = 0.0
    input_forget: bool = False
    linear_before_reset: bool = False
    batch_first: bool = False
    #: How R is stored: "float32", "float16" or "int8".
    dtype: str = "float32"
    scaled: bool = False
    peepholes: bool = False
    lengths: bool = False
    initial_hidden: bool = False
    initial_cell: bool = False
    #: Whether a step is one call of assembly, which takes gates times its GATE_FACTORS.
    called: bool = False
    #: Such a layer's inputs, where it multiplies them itself: enough steps for a tile.
    inputs: int = 0

    @property
    def gates(self) -> int:
        """Number of gates, as ONNX stacks them in W and R."""
        return {"LSTM": 4, "GRU": 3, "RNN": 1}[self.cell]

    @property
    def phases(self) -> tuple[tuple[int, ...], ...]:
        """The gates that can be computed from one and the same state, in order."""
        if self.cell == "GRU" and not self.linear_before_reset:
            return (0, 1), (2,)
        return (tuple(range(self.gates)),)

    @property
    def depth(self) -> int:
        """Length of the sum over the state; weights beyond the hidden size are zeros."""
        return round_up(self.hidden, STEP)

    def sequence_shape(self) -> tuple[int, ...]:
        """Shape of Y."""
        if self.batch_first:
            return self.batch, self.steps, len(self.reverse), self.hidden
        return self.steps, len(self.reverse), self.batch, self.hidden

    def state_shape(self) -> tuple[int, ...]:
        """Shape of Y_h and Y_c, and of the initial states."""
        if self.batch_first:
            return self.batch, len(self.reverse), self.hidden
        return len(self.reverse), self.batch, self.hidden


@dataclass(frozen=True, slots=True)
class Tiling:
    """How units and rows of the batch are cut: what is computed in registers at a time."""

    #: float32 lanes of a vector, and vectors of units per panel.
    lanes: int
    vectors: int
    #: Rows of the batch per tile, and rows per part that one core computes.
    rows: int
    part: int
    #: Parts of the batch, and panels of units.
    parts: int
    panels: int
    #: Whether directions and parts are worth a core each.
    shared: bool

    @property
    def units(self) -> int:
        """Units per panel."""
        return self.lanes * self.vectors

    @property
    def width(self) -> int:
        """Units of all panels; those beyond the hidden size have no effect."""
        return self.units * self.panels


def is_callable(cpu: Cpu, layer: Recurrent) -> bool:
    """Tell whether assembly computes a step of a layer: one row of an LSTM without variants."""
    usual = (Activation("sigmoid"), Activation("tanh"), Activation("tanh"))
    varied = layer.clip or layer.input_forget or layer.peepholes or layer.lengths
    plain = cpu.machine == "aarch64" and layer.dtype == "float32" and layer.batch == 1
    return layer.cell == "LSTM" and plain and not varied and set(layer.activations) == {usual}


def choose_tiling(cpu: Cpu, layer: Recurrent) -> Tiling:
    """Choose the tile with the least waste and the fewest loads that fits the registers."""
    gates = max(len(phase) for phase in layer.phases)
    most = gates * MOST_VECTORS if layer.called else cpu.registers * 3 // 4

    def cost(tile: tuple[int, int]) -> float:
        rows, vectors = tile
        padded = round_up(layer.batch, rows) / layer.batch
        padded *= round_up(layer.hidden, vectors * cpu.lanes) / layer.hidden
        across = gates * vectors
        loads = (rows * cpu.a_cost + across) / (rows * across)
        return padded * (1.0 + loads + 2.0 / min(cpu.chains, rows * across))

    tiles = [
        (rows, vectors)
        for rows in range(1, min(_MOST_ROWS, layer.batch) + 1)
        for vectors in range(1, _MOST_VECTORS + 1)
        if rows * vectors * gates <= most
        and vectors * cpu.lanes <= round_up(layer.hidden, cpu.lanes)
    ]
    rows, vectors = min(tiles or [(1, 1)], key=cost)
    work = layer.steps * layer.batch * layer.gates * layer.hidden * layer.depth
    directions = len(layer.reverse)
    parts = max(1, min(-(-layer.batch // rows), cpu.threads // directions))
    if work // (directions * parts) < _WORTH_SHARING:
        parts = 1
    part = round_up(-(-layer.batch // parts), rows)
    return Tiling(
        lanes=cpu.lanes,
        vectors=vectors,
        rows=rows,
        part=part,
        parts=-(-layer.batch // part),
        panels=-(-layer.hidden // (vectors * cpu.lanes)),
        shared=work // (directions * parts) >= _WORTH_SHARING,
    )


def argument_shapes(layer: Recurrent, tiling: Tiling) -> dict[str, tuple[tuple[int, ...], str]]:
    """List shape and dtype of the arguments by name, in order, without the outputs."""
    directions, panels, units = len(layer.reverse), tiling.panels, tiling.units
    columns = directions * panels * layer.gates * units
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "projected": ((layer.steps * layer.batch, columns), "float32")
    }
    for number, phase in enumerate(layer.phases):
        panel = (directions, panels, layer.depth, len(phase), units)
        shapes[f"weight{number}"] = (panel, layer.dtype)
    optional = {
        "scales": (layer.scaled, (directions, panels, layer.gates, units), "float32"),
        "bias": (layer.linear_before_reset, (directions, panels, 1, units), "float32"),
        "peepholes": (layer.peepholes, (directions, panels, 3, units), "float32"),
        "lengths": (layer.lengths, (layer.batch,), "int32"),
        "hidden": (layer.initial_hidden, layer.state_shape(), "float32"),
        "cell": (layer.initial_cell, layer.state_shape(), "float32"),
    }
    for name, (present, shape, dtype) in optional.items():
        if present:
            shapes[name] = (shape, dtype)
    return shapes


def output_shapes(layer: Recurrent) -> list[tuple[int, ...]]:
    """List the shapes of Y, Y_h and, for LSTM, Y_c."""
    states = 2 if layer.cell == "LSTM" else 1
    return [layer.sequence_shape(), *[layer.state_shape()] * states]


def schedule_recurrent(sch: Schedule, cpu: Cpu, block: Block) -> None:
    """Do nothing: the function is written as it is to run."""
    del sch, cpu, block
