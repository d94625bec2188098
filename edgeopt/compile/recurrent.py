"""LSTM, GRU and RNN of ONNX: what a node asks for, its packed weights, and the call of its loop."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tvm
from tvm import relax

from edgeopt.compile.kernels.lstm_inputs import HEIGHT, pack_columns
from edgeopt.compile.kernels.lstm_loop import define_called
from edgeopt.compile.kernels.lstm_row import GATE_FACTORS
from edgeopt.compile.kernels.recurrent import (
    Recurrent,
    Tiling,
    choose_tiling,
    is_callable,
    output_shapes,
)
from edgeopt.compile.kernels.recurrent_cells import DEFAULTS, TAKES_ALPHA, TAKES_BETA, Activation
from edgeopt.compile.kernels.recurrent_loop import define_recurrent
from edgeopt.compile.site import Site
from edgeopt.compile.stored import Stored, stored_of
from edgeopt.compile.views import constant_of, operator_of, shape_of
from edgeopt.errors import OperatorUnsupported

#: The call that stands for a node until it is lowered.
RECURRENT = "edgeopt.recurrent"
#: Gates, and the functions that a node uses where it names none.
_CELLS: dict[str, tuple[int, tuple[str, ...]]] = {
    "LSTM": (4, ("sigmoid", "tanh", "tanh")),
    "GRU": (3, ("sigmoid", "tanh")),
    "RNN": (1, ("tanh",)),
}
#: How a constant may be stored.
_STORED_AS = ("relax.astype", "relax.dequantize", "relax.reshape", "relax.permute_dims")
_INPUTS = ("x", "w", "r", "b", "lengths", "hidden", "cell", "peepholes")

#: Emits x[..., K] @ W with W as it is stored; None where it cannot.
Multiply = Callable[[Site, relax.Expr, relax.Expr, tuple[int, ...]], relax.Expr | None]


def convert_recurrent(
    cell: str,
) -> Callable[[relax.BlockBuilder, Sequence[relax.Expr | None], Mapping[str, object]], relax.Expr]:
    """Make the converter of one operator: the node stays whole, with its attributes as text."""

    def convert(
        builder: relax.BlockBuilder,
        inputs: Sequence[relax.Expr | None],
        attributes: Mapping[str, object],
    ) -> relax.Expr:
        given = dict(zip(_INPUTS, inputs, strict=False))
        _refuse_computed(builder, cell, given)
        present = [name for name in _INPUTS if given.get(name) is not None]
        options = {name: _plain(attributes[name]) for name in attributes if name != "tvm_custom"}
        layer = _describe(cell, given, options)
        shapes = output_shapes(layer)
        text = json.dumps({"cell": cell, "present": present, "options": options}, sort_keys=True)
        return builder.emit(
            relax.op.call_pure_packed(
                RECURRENT,
                tvm.ir.StringImm(text),
                *[given[name] for name in present],
                ty_args=[relax.TupleType([relax.TensorType(each, "float32") for each in shapes])],
            )
        )

    return convert


def _refuse_computed(
    builder: relax.BlockBuilder, cell: str, given: Mapping[str, relax.Expr | None]
) -> None:
    """Refuse weights that are not stored, perhaps compressed, in the model.

    Here and not when the layer is lowered: an error of ours would not survive TVM's visitors.
    """
    for name in ("w", "r", "b", "peepholes"):
        expr = given.get(name)
        while isinstance(expr, relax.Var):
            bound = builder.lookup_binding(expr)
            expr = bound.args[0] if operator_of(bound) in _STORED_AS else bound
        if expr is not None and operator_of(expr) in _STORED_AS:
            expr = expr.args[0]
        if given.get(name) is not None and (expr is None or constant_of(expr) is None):
            raise OperatorUnsupported(
                f"a {cell} has weights that are not constant",
                why=f"{name.upper()} is computed; weights are packed when the model is compiled",
                fix="store W, R, B and P in the model instead of computing them",
            )


def _plain(value: object) -> object:
    """Turn an attribute into what JSON holds."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def _describe(
    cell: str, given: Mapping[str, relax.Expr | None], options: Mapping[str, Any]
) -> Recurrent:
    x, recurrence = given["x"], given["r"]
    assert x is not None
    assert recurrence is not None
    batch_first = bool(options.get("layout", 0))
    first, second, _ = shape_of(x)
    direction = options.get("direction", "forward")
    reverse = {"reverse": (True,), "bidirectional": (False, True)}.get(direction, (False,))
    return Recurrent(
        cell=cell,
        steps=second if batch_first else first,
        batch=first if batch_first else second,
        hidden=shape_of(recurrence)[2],
        reverse=reverse,
        activations=_activations(cell, len(reverse), options),
        clip=float(options.get("clip", 0.0)),
        input_forget=bool(options.get("input_forget", 0)),
        linear_before_reset=cell == "GRU" and bool(options.get("linear_before_reset", 0)),
        batch_first=batch_first,
        peepholes=given.get("peepholes") is not None,
        lengths=given.get("lengths") is not None,
        initial_hidden=given.get("hidden") is not None,
        initial_cell=given.get("cell") is not None,
    )


def _activations(
    cell: str, directions: int, options: Mapping[str, Any]
) -> tuple[tuple[Activation, ...], ...]:
    """Read the functions of each direction; each takes its parameters from lists, in order."""
    usual = _CELLS[cell][1]
    names = [str(name).lower() for name in options.get("activations", usual * directions)]
    alphas = list(options.get("activation_alpha", ()))
    betas = list(options.get("activation_beta", ()))
    made = []
    for name in names:
        if name not in DEFAULTS:
            raise OperatorUnsupported(
                f"a recurrent layer uses the function {name!r}",
                why=f"known are {', '.join(DEFAULTS)}",
                fix="export the layer with one of these",
            )
        alpha, beta = DEFAULTS[name]
        if name in TAKES_ALPHA and alphas:
            alpha = alphas.pop(0)
        if name in TAKES_BETA and betas:
            beta = betas.pop(0)
        made.append(Activation(name, float(alpha), float(beta)))
    each = len(usual)
    return tuple(tuple(made[place : place + each]) for place in range(0, each * directions, each))


def lower_recurrent(multiply: Multiply) -> Callable[[Site, relax.Call], relax.Expr | None]:
    """Make the lowering of a recurrent node, given that of a product with a stored matrix."""

    def lower(site: Site, call: relax.Call) -> relax.Expr | None:
        facts = json.loads(str(call.args[1].value))
        given = dict(zip(facts["present"], call.args[2:], strict=True))
        layer = _describe(facts["cell"], given, facts["options"])
        weight, again = stored_of(site, given["w"]), stored_of(site, given["r"])
        bias, peepholes = (
            None if name not in given else stored_of(site, given[name])
            for name in ("b", "peepholes")
        )
        assert weight is not None, "checked on import"
        assert again is not None, "checked on import"
        layer = replace(layer, dtype=str(again.values.dtype), scaled=again.scales is not None)
        plain = weight.scales is None and weight.values.dtype == np.float32
        if plain and is_callable(site.cpu, layer):
            own = shape_of(given["x"])[-1] if layer.steps >= HEIGHT else 0
            layer = replace(layer, called=True, inputs=own)
        tiling = choose_tiling(site.cpu, layer)
        shares = _bias_shares(layer, bias)
        if layer.inputs:
            arguments = _own_inputs(site, (layer, tiling), given["x"], weight, shares[0])
        else:
            arguments = [_project(site, multiply, (layer, tiling), given["x"], weight, shares[0])]
        arguments += _packed(layer, tiling, again, shares[1], peepholes)
        if layer.lengths:
            arguments.append(site.emit(relax.op.astype(given["lengths"], "int32")))
        arguments += [given[name] for name in ("hidden", "cell") if name in given]
        return _emit(site, layer, tiling, arguments)

    return lower


def _arrange(values: np.ndarray, gates: int, tiling: Tiling) -> np.ndarray:
    """Lay out [D, gates x H, ...] as [D, panels, gates, units, ...], zeros beyond H."""
    directions, rows, *rest = values.shape
    hidden = rows // gates
    padded = np.zeros((directions, gates, tiling.width, *rest), values.dtype)
    padded[:, :, :hidden] = values.reshape(directions, gates, hidden, *rest)
    panels = padded.reshape(directions, gates, tiling.panels, tiling.units, *rest)
    return np.ascontiguousarray(panels.swapaxes(1, 2))


def _arrange_gates(layer: Recurrent, values: np.ndarray, tiling: Tiling) -> np.ndarray:
    """Lay out what belongs to the gates, multiplied where assembly takes it so."""
    arranged = _arrange(values, layer.gates, tiling)
    if not layer.called:
        return arranged
    factors = np.array(GATE_FACTORS).reshape(-1, *[1] * (arranged.ndim - 3))
    return np.asarray(arranged * factors, np.float32)


def _row_scales(stored: Stored) -> np.ndarray:
    """Spread the scales of a stored [D, rows, K] weight over [D, rows]."""
    assert stored.scales is not None
    shape = [1, 1, 1]
    if stored.scales.size > 1:
        shape[stored.axis] = stored.scales.size
    spread = np.broadcast_to(stored.scales.reshape(shape)[:, :, 0], stored.values.shape[:2])
    return np.ascontiguousarray(spread, dtype=np.float32)


def _bias_shares(layer: Recurrent, bias: Stored | None) -> tuple[np.ndarray, np.ndarray]:
    """Split the bias, [D, 2 x gates x H], into what joins the inputs and what joins the state.

    Only a GRU that resets after the product has a share of the state: that of its last gate.
    """
    rows = layer.gates * layer.hidden
    if bias is None:
        values = np.zeros((len(layer.reverse), 2 * rows), np.float32)
    else:
        values = bias.values.astype(np.float32)
        if bias.scales is not None:
            values = values * bias.scales.reshape(-1, *[1] * (1 - bias.axis))
    inputs, states = values[:, :rows].copy(), values[:, rows:].copy()
    kept = 2 * layer.hidden if layer.linear_before_reset else rows
    inputs[:, :kept] += states[:, :kept]
    return inputs, states[:, kept:]


def _project(
    site: Site,
    multiply: Multiply,
    shape: tuple[Recurrent, Tiling],
    x: relax.Expr,
    weight: Stored,
    bias: np.ndarray,
) -> relax.Expr:
    """Emit x @ W + bias for all steps at once, columns by direction, panel, gate and unit."""
    layer, tiling = shape
    inputs = shape_of(x)[-1]
    matrix = _arrange_gates(layer, weight.values, tiling).reshape(-1, inputs)
    right: relax.Expr = relax.const(np.ascontiguousarray(matrix.T))
    if weight.scales is not None:
        scales = _arrange(_row_scales(weight), layer.gates, tiling).reshape(-1)
        zeros = relax.const(np.zeros(scales.shape, np.int8))
        right = site.emit(relax.op.dequantize(right, relax.const(scales), zeros, axis=1))
    elif weight.values.dtype == np.float16:
        right = site.emit(relax.op.astype(right, "float32"))
    rows = layer.steps * layer.batch
    flat = site.reshape(x, (rows, inputs))
    product = multiply(site, flat, right, (rows, len(matrix)))
    assert product is not None, "the matrix is constant"
    added = _arrange_gates(layer, bias, tiling).reshape(-1)
    return site.emit(relax.op.add(product, relax.const(added)))


def _own_inputs(
    site: Site, shape: tuple[Recurrent, Tiling], x: relax.Expr, weight: Stored, bias: np.ndarray
) -> list[relax.Expr]:
    """List what a layer that multiplies its inputs itself takes, in the order of called_shapes."""
    layer, tiling = shape
    matrix = _arrange_gates(layer, weight.values, tiling).reshape(-1, layer.inputs)
    added = _arrange_gates(layer, bias, tiling).reshape(-1)
    flat = site.reshape(x, (layer.steps, layer.inputs))
    return [flat, relax.const(pack_columns(matrix.T)), relax.const(added)]


def _packed(
    layer: Recurrent,
    tiling: Tiling,
    again: Stored,
    state_bias: np.ndarray,
    peepholes: Stored | None,
) -> list[relax.Expr]:
    """Pack R by phases, and whatever goes with it, in the order of argument_shapes."""
    arranged = _arrange_gates(layer, again.values, tiling)
    *lead, hidden = arranged.shape
    padded = np.zeros((*lead, layer.depth), arranged.dtype)
    padded[..., :hidden] = arranged
    # [D, panels, gates, units, K] to [D, panels, K, gates, units].
    panels = padded.transpose(0, 1, 4, 2, 3)
    values = [np.ascontiguousarray(panels[:, :, :, list(phase)]) for phase in layer.phases]
    if layer.scaled:
        values.append(_arrange(_row_scales(again), layer.gates, tiling))
    if layer.linear_before_reset:
        values.append(_arrange(state_bias, 1, tiling))
    if peepholes is not None:
        values.append(_arrange(peepholes.values.astype(np.float32), 3, tiling))
    return [relax.const(value) for value in values]


def _emit(
    site: Site, layer: Recurrent, tiling: Tiling, arguments: Sequence[relax.Expr]
) -> relax.Expr:
    if layer.called:
        function = define_called(site.cpu, layer, tiling)
    else:
        function = define_recurrent(site.cpu, layer, tiling)
    variable: tvm.ir.GlobalVar = site.builder.add_func(function, layer.cell.lower())
    results = [relax.TensorType(shape, "float32") for shape in output_shapes(layer)]
    made = site.emit(relax.call_tir(variable, relax.Tuple(list(arguments)), results))
    return relax.Tuple([site.emit(relax.TupleGetItem(made, i)) for i in range(len(results))])
