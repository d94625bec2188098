"""TVM's script language, read at the cost of parsing it."""

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.parser._core import parse, utils


def prim_func(*, s_tir: bool) -> Callable[[Callable[..., Any]], tirx.PrimFunc]:
    """Read a Python function as a loop-level function; for use as `script.prim_func`.

    As T.prim_func, which also looks up the source line of every frame of the call stack, twice:
    40 to 600 ms a function, the more the more modules are loaded. The parser knows the decorator
    by this name and reads its argument from the text.
    """
    assert s_tir

    def read(function: Callable[..., Any]) -> tirx.PrimFunc:
        return parse(function, utils.inspect_function_capture(function))

    read.dispatch_token = "tirx"  # type: ignore[attr-defined]  # noqa: S105  # nosec B105
    return read
