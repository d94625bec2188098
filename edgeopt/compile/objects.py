"""Each kernel as an object file of its own, found again by what it computes, in any model."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax

from edgeopt.compile.canonical import canonical_text, read_function
from edgeopt.compile.cpu import Cpu
from edgeopt.compile.kernels.rule import RULE, sorted_functions
from edgeopt.compile.plan_memory import MOVE, replace_bindings
from edgeopt.store import KERNELS, digest_file, tool_versions, write_atomically

#: What beside the text decides what LLVM makes of it; LLVM is part of TVM's wheel.
_TOOLS = ("apache-tvm", "apache-tvm-ffi")
#: Digits of the key in a symbol: enough for one bundle, and symbols are in every message of the
#: code's checks. Each object is found by its whole key.
_SYMBOL_DIGITS = 12
#: An object lies behind its own sha256.
_DIGEST_BYTES = 32
#: TVM generates code outside of Python's lock. More threads would take memory, not time: few
#: kernels of a model are new, and hosts are small.
_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Kernel:
    """A function to generate code of: its symbol says what it is, so that no model differs."""

    key: str
    symbol: str
    text: str


@dataclass(frozen=True, slots=True)
class Separated:
    """A planned module that calls kernels by their symbols, and those kernels in symbol order."""

    module: tvm.IRModule
    kernels: tuple[Kernel, ...]


def separate_kernels(planned: tvm.IRModule, cpu: Cpu, *, system_lib: bool) -> Separated:
    """Take the loop-level functions out of a planned module; equal ones become one kernel."""
    origin = _origin(cpu, system_lib=system_lib)
    kernels: dict[str, Kernel] = {}
    for variable, function in sorted_functions(planned):
        name = str(variable.name_hint)
        if name != MOVE:
            text = canonical_text(function)
            key = hashlib.sha256(f"{origin}\n{text}".encode()).hexdigest()
            rule = str((function.attrs or {}).get(RULE, "plain"))
            kernels[name] = Kernel(key, f"{rule}_{key[:_SYMBOL_DIGITS]}", text)

    def call(binding: relax.Binding) -> list[relax.Binding]:
        value = binding.value
        if not isinstance(value, relax.Call) or not isinstance(value.op, tvm.ir.GlobalVar):
            return [binding]
        kernel = kernels.get(str(value.op.name_hint))
        if kernel is None:
            return [binding]
        called = relax.ExternFunc(kernel.symbol)
        made = relax.Call(called, value.args, ty_args=[relax.TupleType([])])
        return [relax.VarBinding(binding.var, made)]

    module = replace_bindings(planned, call)
    kept = {v: f for v, f in module.functions.items() if str(v.name_hint) not in kernels}
    ordered = {each.symbol: each for each in kernels.values()}
    return Separated(
        tvm.IRModule(kept, attrs=module.attrs),
        tuple(ordered[symbol] for symbol in sorted(ordered)),
    )


def write_objects(
    separated: Separated, cpu: Cpu, *, system_lib: bool, folder: Path, cache: Path
) -> list[Path]:
    """Write a module's kernels as object files into a folder; those not in the cache are made.

    A cached object that is not what was written is made again. The same objects come out whether
    found or made, because both are made of the key's own text.
    """

    def provide(kernel: Kernel) -> Path:
        output = folder / f"{kernel.symbol}.o"
        place = _place(kernel, cache)
        data = _read_object(place)
        if data is None:
            _generate(kernel, cpu, system_lib=system_lib, output=output)
            data = output.read_bytes()
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, hashlib.sha256(data).digest() + data)
        else:
            output.write_bytes(data)
        return output

    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        return list(pool.map(provide, separated.kernels))


def _origin(cpu: Cpu, *, system_lib: bool) -> str:
    """Name all that decides a kernel's code beside its text, this module included."""
    versions = tool_versions()
    tools = [f"{tool} {versions[tool]}" for tool in _TOOLS]
    linkage = "system-lib" if system_lib else "library"
    return "\n".join([*tools, digest_file(Path(__file__)), linkage, str(cpu.target())])


def _place(kernel: Kernel, cache: Path) -> Path:
    return cache / KERNELS / kernel.key[:2] / kernel.key


def _read_object(path: Path) -> bytes | None:
    """Read a cached object; None when there is none or it was damaged."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    data = stored[_DIGEST_BYTES:]
    return data if hashlib.sha256(data).digest() == stored[:_DIGEST_BYTES] else None


def _generate(kernel: Kernel, cpu: Cpu, *, system_lib: bool, output: Path) -> None:
    """Generate a kernel's code as the only function of a module."""
    function = read_function(kernel.text).with_attr("global_symbol", kernel.symbol)
    module = tvm.IRModule({kernel.symbol: function})
    if system_lib:
        module = module.with_attr("system_lib_prefix", "")
    target = cpu.target()
    # TVM makes the only function of a module its entry: one name, which every object would define.
    with target, tvm.transform.PassContext(opt_level=2, disabled_pass=["tirx.AnnotateEntryFunc"]):
        tvm.tirx.build(module, target=target).write_to_file(str(output))
