"""Calls of assembly from the loops of a recurrent layer, written with TVM's IR builder."""

from typing import TypeAlias

from tvm import tirx
from tvm.tirx.script import builder

from edgeopt.compile.kernels import lstm_row, microkernel

Pointers: TypeAlias = tuple[tirx.Expr, ...]


def point_at(*elements: tirx.Expr) -> Pointers:
    """Return pointers at elements of buffers."""
    return tuple(tirx.address_of(each) for each in elements)


def call_row(sums: int, pointers: Pointers, start: Pointers, depth: tirx.Expr) -> None:
    """Let assembly compute one row's sums: the state, weights, where sums go; and their start."""
    _call(microkernel.name_row(sums), microkernel.write_row(sums), pointers, depth, start)


def call_cell(
    tile: tuple[int, int], pointers: Pointers, others: Pointers, depth: tirx.Expr
) -> None:
    """Let assembly compute a step of an LSTM, so many vectors a panel, so many panels.

    Pointers are at the state, weights and cell's state, others at what sums start from and where
    the new state goes.
    """
    vectors, panels = tile
    rest = (*others, tirx.const(panels, "int64"))
    _call(lstm_row.name_cell(vectors), lstm_row.write_cell(vectors), pointers, depth, rest)


def _call(name: str, module: str, pointers: Pointers, depth: tirx.Expr, rest: Pointers) -> None:
    with builder.attr(tirx.const(0, "int32"), "pragma_import_llvm", module):
        count = tirx.Cast("int64", depth)
        builder.evaluate(tirx.call_extern("int32", name, *pointers, count, *rest))
