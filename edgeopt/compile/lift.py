"""Constants out of the code: they become trailing parameters that the device maps from a file."""

import hashlib
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from edgeopt.compile.views import constant_of

#: Constants below this size stay in the code: a parameter costs a record of its own.
_SMALL = 256


@dataclass(frozen=True, slots=True)
class Lifted:
    """A module without constants, and their values in the order of main's trailing parameters."""

    module: tvm.IRModule
    arrays: tuple[np.ndarray, ...]
    digests: tuple[str, ...]


def digest_array(value: np.ndarray) -> str:
    """Identify an array by type, shape and content."""
    state = hashlib.sha256(f"{value.dtype.str}{value.shape}".encode())
    state.update(np.ascontiguousarray(value).data)
    return state.hexdigest()


@mutator
class _Lift(PyExprMutator):  # type: ignore[misc]
    """Replace constants by parameters; equal constants share one."""

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.parameters: dict[str, relax.Var] = {}
        self.arrays: list[np.ndarray] = []

    def visit_generic_const_(self, constant: relax.Expr) -> relax.Expr:
        value = constant_of(constant)
        if value is None or value.nbytes < _SMALL:
            return constant
        digest = digest_array(value)
        if digest not in self.parameters:
            kind = relax.TensorType(value.shape, str(value.dtype))
            self.parameters[digest] = relax.Var(f"weight{len(self.arrays)}", kind)
            self.arrays.append(value)
        return self.parameters[digest]


def lift_constants(module: tvm.IRModule) -> Lifted:
    """Turn the constants of main into trailing parameters, in order of first use."""
    lift = _Lift(module)
    main = module["main"]
    body = lift.visit_expr(main.body)
    parameters = [*main.params, *lift.parameters.values()]
    function = relax.Function(parameters, body, main.ret_ty, main.is_pure, main.attrs)
    lifted = tvm.IRModule(dict(module.functions), attrs=module.attrs)
    lifted.update_func(module.get_global_var("main"), function)
    lifted = relax.transform.Normalize()(lifted)
    return Lifted(lifted, tuple(lift.arrays), tuple(lift.parameters))
