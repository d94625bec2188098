"""Innermost loops of compiled AArch64 code, read from the assembly text that LLVM prints.

A loop is what lies between a label and the last branch back to it. Its multiply-adds, loads and
references to the stack are counted as they stand: a branch inside is as if it were never taken.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.compile.build import build_executable, plan_module
from edgeopt.compile.cpu import Cpu
from edgeopt.compile.import_onnx import import_model
from edgeopt.compile.lift import lift_constants
from edgeopt.compile.lower import lower_module

_FUNCTION = re.compile(r"^\s*\.type\s+(\S+),@function")
#: Of a block, or local to assembly that a kernel brings along.
_LABEL = re.compile(r"^\s*(\.L\w+|\d+):")
_INSTRUCTION = re.compile(r"^\s*([a-z][\w.]*)(?:\s+([^/:]*?))?\s*(?://.*)?$")
_BRANCH = re.compile(r"^(?:b|b\.\w+|cbn?z|tbn?z)$")
_BASE = re.compile(r"\[(\w+)")
_LAMBDA = re.compile(r"\.L__tvm_parallel_lambda[.\d]*")
_VECTOR = re.compile(r"^v\d+\.(\d+)([bhsd])")
_BITS = {"b": 8, "h": 16, "s": 32, "d": 64}

#: What multiplies floats, and adds or not: a product that starts a sum takes the place of one.
_FLOAT = re.compile(r"^(?:fmla|fmls|fmul|fn?madd|fn?msub)$")
#: What multiplies integers lane by lane; a sum of four or eight products per lane of the result.
_INTEGER = re.compile(r"^(?:[su]ml[as]l2?|[su]mull2?|ml[as])$")
_DOT = {"sdot": 4, "udot": 4, "usdot": 4, "sudot": 4, "smmla": 8, "ummla": 8, "usmmla": 8}
#: What adds to the register that it writes.
_ADDING = re.compile(r"^(?:fml[as]|[su]ml[as]l2?|ml[as]|[su]adalp)$")
_CALLS = ("bl", "blr")
#: Registers that a call may change: AAPCS64, 6.1.1.
_CLOBBERED = frozenset(f"x{number}" for number in range(19))


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of assembly: its name and its operands."""

    name: str
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {', '.join(self.operands)}"

    @property
    def branches(self) -> bool:
        """Whether it goes to a label."""
        return _BRANCH.match(self.name) is not None

    @property
    def base(self) -> str | None:
        """The register that a load or store counts its address from."""
        if not self.name.startswith(("ld", "st")):
            return None
        found = _BASE.search(str(self))
        return found and found[1]

    @property
    def floats(self) -> float:
        """Multiply-adds of floats, in vectors of 128 bits."""
        if not _FLOAT.match(self.name):
            return 0.0
        vector = _VECTOR.match(self.operands[0])
        return int(vector[1]) * _BITS[vector[2]] / 128 if vector else 0.25

    @property
    def integers(self) -> int:
        """Multiply-adds of integers; those of scalars compute addresses and are none."""
        vector = _VECTOR.match(self.operands[0]) if self.operands else None
        if vector is None:
            return 0
        if _INTEGER.match(self.name):
            return int(vector[1])
        return int(vector[1]) * _DOT.get(self.name, 0)

    @property
    def added(self) -> set[str]:
        """The vector register that products are added to."""
        if self.name not in _DOT and not _ADDING.match(self.name):
            return set()
        return {_register(self.operands[0])}

    @property
    def replaced(self) -> set[str]:
        """Vector registers whose value is lost."""
        if self.added or self.name.startswith("st") or not self.operands:
            return set()
        several = self.name in ("ldp", "ldnp") or self.operands[0].startswith("{")
        written = {_register(each) for each in self.operands[: None if several else 1]}
        return written.difference(map(_register, self.operands[1:])) if not several else written


@dataclass(frozen=True, slots=True)
class Loop:
    """An innermost loop that multiplies and adds."""

    #: The function of the model, and the label that the loop begins with.
    function: str
    label: str
    body: tuple[Instruction, ...]
    #: Loads and stores on the stack: spilled registers, and buffers that did not become registers.
    stack: int

    @property
    def integer(self) -> bool:
        """Whether it multiplies codes, be there a few floats beside them."""
        return self.integers > 4 * self.floats

    @property
    def floats(self) -> float:
        """Multiply-adds of floats in one turn, in vectors of 128 bits."""
        return sum(each.floats for each in self.body)

    @property
    def integers(self) -> int:
        """Multiply-adds of integers in one turn."""
        return sum(each.integers for each in self.body)

    @property
    def multiplications(self) -> int:
        """Instructions that multiply and add."""
        return sum(bool(each.floats or each.integers) for each in self.body)

    @property
    def loads(self) -> int:
        """Instructions that load."""
        return sum(each.name.startswith("ld") for each in self.body)

    @property
    def sums(self) -> bool:
        """Whether it adds products up from turn to turn, as a product of matrices does."""
        added = {register for each in self.body for register in each.added}
        return bool(added.difference(*(each.replaced for each in self.body)))


def compile_assembly(path: Path, cpu: Cpu) -> str:
    """Compile a normalized model as the compile stage does, and print its code as assembly."""
    if cpu.machine != "aarch64":
        raise ValueError(f"{cpu.core} is no AArch64 core: name a target whose isa.machine is")
    lowered = lower_module(import_model(path), cpu)
    planned = plan_module(lift_constants(lowered.module).module, cpu)
    executable = build_executable(planned, cpu)
    code = [part for part in executable.mod.imports if part.kind == "llvm"]
    return "\n".join(str(part.inspect_source("asm")) for part in code)


def find_loops(assembly: str) -> list[Loop]:
    """List the innermost loops that multiply and add, in the order of the text."""
    functions = dict(_functions(assembly))
    owners = _owners(functions)
    return [
        loop
        for name, lines in functions.items()
        for loop in _loops_of(owners.get(name, name), lines)
        if loop.multiplications
    ]


def read_instruction(line: str) -> Instruction | None:
    """Read one line; a label, a directive or a comment is none.

    >>> read_instruction("\\tfmla\\tv25.4s, v8.4s, v29.s[0]").floats
    1.0
    >>> read_instruction("\\tsdot v0.4s, v1.16b, v2.4b[3]").integers
    16
    >>> read_instruction("\\tldp q8, q9, [x18, #-128]").base
    'x18'
    >>> read_instruction("\\t.p2align 4")
    """
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    operands = (found[2] or "").strip()
    return Instruction(found[1], tuple(re.split(r",\s*", operands)) if operands else ())


def _register(operand: str) -> str:
    """Name a vector register, whole or in part: q3, d3, {v3.16b} and v3.s[1] are v3."""
    found = re.match(r"^[{ ]*[vqdshb](\d+)\b", operand)
    return f"v{found[1]}" if found else operand


def _functions(assembly: str) -> Iterator[tuple[str, list[str]]]:
    """Split the text into functions and their lines."""
    name, lines = "", list[str]()
    for line in assembly.splitlines():
        found = _FUNCTION.match(line)
        if found is not None:
            name, lines = found[1], []
        elif name and line.strip().startswith(".size"):
            yield name, lines
            name = ""
        else:
            lines.append(line)


def _owners(functions: dict[str, list[str]]) -> dict[str, str]:
    """Say whose work each body of a parallel loop is, and leave out what code generation adds."""
    callers: dict[str, str] = {}
    for name, lines in functions.items():
        for called in _LAMBDA.findall("\n".join(lines)):
            if called != name:
                callers.setdefault(called, name)
    owners = {}
    for name in functions:
        owner = name
        while owner in callers:
            owner = callers[owner]
        owners[name] = owner.removeprefix("__tvm_ffi_").removesuffix("_compute_")
    return owners


def _loops_of(function: str, lines: Sequence[str]) -> Iterator[Loop]:
    read = [read_instruction(line) for line in lines]
    ends = _backward_branches(lines, read)
    on_stack = _stack_references(read)
    for start, end in ends.items():
        within = [other for other in ends.items() if start <= other[0] and other[1] <= end]
        if len(within) == 1:
            body = tuple(each for each in read[start : end + 1] if each is not None)
            yield Loop(
                function, lines[start].strip().rstrip(":"), body, sum(on_stack[start : end + 1])
            )


def _backward_branches(lines: Sequence[str], read: Sequence[Instruction | None]) -> dict[int, int]:
    """Find the lines of the labels that are branched back to, each with the last such branch."""
    seen: dict[str, int] = {}
    ends: dict[int, int] = {}
    for place, (line, each) in enumerate(zip(lines, read, strict=True)):
        label = _LABEL.match(line)
        if label is not None:
            seen[label[1]] = place
        elif each is not None and each.branches:
            # A local label is the last one of its number: 1b.
            target = re.sub(r"^(\d+)b$", r"\1", each.operands[-1])
            if target in seen:
                ends[seen[target]] = place
    return ends


def _stack_references(read: Sequence[Instruction | None]) -> list[bool]:
    """Say of each line whether it loads from or stores to the stack.

    Registers that hold an address on the stack are followed in the order of the text, which is
    that of the flow everywhere but where LLVM has moved a block that is hardly ever reached.
    """
    pointers = {"sp"}
    found = []
    for each in read:
        found.append(each is not None and each.base in pointers)
        if each is None or not each.operands:
            continue
        if each.name in _CALLS:
            pointers -= _CLOBBERED
        elif each.base is None and not each.branches:
            written = each.operands[0]
            derived = each.name in ("add", "sub", "mov") and pointers.intersection(
                each.operands[1:]
            )
            pointers = pointers | {written} if derived else pointers - {written} | {"sp"}
        elif each.name.startswith("ld"):
            pointers -= set(each.operands[:2]) - {"sp"}
    return found
