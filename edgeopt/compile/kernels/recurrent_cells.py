"""What the gates of LSTM, GRU and RNN do to accumulators, and the functions that ONNX names."""

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from edgeopt.compile.kernels import functions
from edgeopt.compile.kernels.functions import Value, number


@dataclass(frozen=True, slots=True)
class Activation:
    """One function by its ONNX name, in lower case, and its parameters."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def apply(self, x: Value) -> Value:
        """Compute the function, as the ONNX documentation of LSTM defines it."""
        return _FUNCTIONS[self.name](x, self.alpha, self.beta)


#: Parameters of each function where a node gives none; onnxruntime has the same.
DEFAULTS: dict[str, tuple[float, float]] = {
    "relu": (0.0, 0.0),
    "tanh": (0.0, 0.0),
    "sigmoid": (0.0, 0.0),
    "affine": (1.0, 0.0),
    "leakyrelu": (0.01, 0.0),
    "thresholdedrelu": (1.0, 0.0),
    "scaledtanh": (1.0, 1.0),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0, 0.0),
    "softsign": (0.0, 0.0),
    "softplus": (0.0, 0.0),
}
#: Functions that consume a value of activation_alpha, and of activation_beta.
TAKES_ALPHA = ("affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu")
TAKES_BETA = ("affine", "scaledtanh", "hardsigmoid")


def _where(condition: Value, yes: Value, no: Value) -> Value:
    return tirx.Select(condition, yes, no)


def _softplus(x: Value) -> Value:
    """Compute log(1 + e^x) = max(x, 0) + log(1 + e^-|x|), which cannot overflow."""
    rest = tirx.log(number(1.0) + functions.exp(number(0.0) - tirx.abs(x)))
    return tirx.max(x, number(0.0)) + rest


_FUNCTIONS: dict[str, Callable[[Value, float, float], Value]] = {
    "relu": lambda x, _a, _b: tirx.max(x, number(0.0)),
    "tanh": lambda x, _a, _b: functions.tanh_within(x),
    "sigmoid": lambda x, _a, _b: functions.sigmoid_within(x),
    "affine": lambda x, a, b: x * number(a) + number(b),
    "leakyrelu": lambda x, a, _b: _where(x >= number(0.0), x, x * number(a)),
    "thresholdedrelu": lambda x, a, _b: _where(x >= number(a), x, number(0.0)),
    "scaledtanh": lambda x, a, b: functions.tanh_within(x * number(b)) * number(a),
    "hardsigmoid": lambda x, a, b: functions.clamp(x * number(a) + number(b), 0.0, 1.0),
    "elu": lambda x, a, _b: _where(
        x >= number(0.0), x, number(a) * (functions.exp(x) - number(1.0))
    ),
    "softsign": lambda x, _a, _b: x / (number(1.0) + tirx.abs(x)),
    "softplus": lambda x, _a, _b: _softplus(x),
}


@dataclass(frozen=True, slots=True)
class Place:
    """One vector of units of one row, as the cells see it: reads, and assignments in order."""

    #: Reads and sets the accumulator of a gate, by its place in the phase.
    gate: Callable[[int], Value]
    set_gate: Callable[[int, Value], None]
    #: The state before the step, and what sets the one after it.
    before: Callable[[], Value]
    set_state: Callable[[Value], None]
    #: Buffers that last from step to step or from phase to phase, by number.
    kept: Callable[[int], Value]
    set_kept: Callable[[int, Value], None]
    #: The inputs' share of a gate, by its place in ONNX's order.
    projected: Callable[[int], Value]
    #: One of the peepholes, in ONNX's order: input, output, forget.
    peephole: Callable[[int], Value]
    #: new within the row's sequence, old after its end.
    within: Callable[[Value, Value], Value]


@dataclass(frozen=True, slots=True)
class Cell:
    """The variant of a cell: its functions in ONNX's order and its options."""

    activations: tuple[Activation, ...]
    clip: float = 0.0
    input_forget: bool = False
    linear_before_reset: bool = False
    peepholes: bool = False

    def apply(self, which: int, x: Value) -> Value:
        """Limit a value and apply one of the functions."""
        limited = functions.clamp(x, -self.clip, self.clip) if self.clip else x
        return self.activations[which].apply(limited)


def update_lstm(cell: Cell, at: Place) -> None:
    """Gates 0 to 3 are input, output, forget and cell; the kept buffer is the cell's state."""
    if cell.peepholes:
        at.set_gate(0, at.gate(0) + at.peephole(0) * at.kept(0))
        at.set_gate(2, at.gate(2) + at.peephole(2) * at.kept(0))
    at.set_gate(0, cell.apply(0, at.gate(0)))
    if cell.input_forget:
        at.set_gate(2, number(1.0) - at.gate(0))
    else:
        at.set_gate(2, cell.apply(0, at.gate(2)))
    at.set_gate(3, cell.apply(1, at.gate(3)))
    at.set_gate(3, at.gate(2) * at.kept(0) + at.gate(0) * at.gate(3))
    if cell.peepholes:
        at.set_gate(1, at.gate(1) + at.peephole(1) * at.gate(3))
    at.set_gate(1, cell.apply(0, at.gate(1)))
    # As in onnxruntime, the limit is for gates: the cell's own state is not clipped.
    at.set_gate(0, cell.activations[2].apply(at.gate(3)))
    at.set_state(at.within(at.gate(1) * at.gate(0), at.before()))
    at.set_kept(0, at.within(at.gate(3), at.kept(0)))


def update_gru(cell: Cell, at: Place, phase: int) -> None:
    """Gates are update, reset and hidden; without linear_before_reset, hidden has its own phase.

    Kept are then the update gate and the state that was reset.
    """
    if phase == 0:
        at.set_gate(0, cell.apply(0, at.gate(0)))
        at.set_gate(1, cell.apply(0, at.gate(1)))
    if phase == 0 and not cell.linear_before_reset:
        at.set_kept(0, at.gate(0))
        at.set_kept(1, at.gate(1) * at.before())
        return
    if phase == 0:
        hidden = 2
        at.set_gate(2, at.projected(2) + at.gate(1) * at.gate(2))
    else:
        hidden = 0
    at.set_gate(hidden, cell.apply(1, at.gate(hidden)))
    update = at.kept(0) if phase else at.gate(0)
    new = at.gate(hidden)
    at.set_state(at.within(new + update * (at.before() - new), at.before()))


def update_rnn(cell: Cell, at: Place) -> None:
    """Apply the one function to the one gate."""
    at.set_gate(0, cell.apply(0, at.gate(0)))
    at.set_state(at.within(at.gate(0), at.before()))
