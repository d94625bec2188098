"""Cycles per multiply-add of every inner loop of a model, in LLVM's models of the boards' cores.

    python -m tests.bench.mca model.onnx [--target rpi3 --target rpi4] [--shape x=1x32]
    python -m tests.bench.mca --suite --only encoder --all

Compiles the model, finds the innermost loops that multiply and add, and asks llvm-mca how long a
turn of each takes when every load hits L1. Floats: cycles per 128-bit multiply-add; int8:
multiply-adds per cycle. The share is the time against that of the core's limit, as its target
states it: 1.00 cannot be beaten. Where a row takes each weight once, its loads take longer than its
multiplications: the bound is the time against the longer of the limit's and of what llvm-mca says
of the loads alone. Without --all only sums and what uses the stack are listed.
"""

import argparse
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import edgeopt
from edgeopt.compile.cpu import describe_cpu
from edgeopt.store import digest_file, digest_tree, write_atomically
from edgeopt.target import Cluster, load_target
from tests.bench.loops import Instruction, Loop, compile_assembly, find_loops
from tests.bench.prepare import prepare_model, print_table, read_options

SCHEMA = 1
#: Cores that LLVM describes by another's timings, and the core of the same design that it models:
#: its Cortex-A76 is a Cortex-A57 (AArch64Processors.td); the Neoverse N1 is an A76 for servers.
_MODELLED = {"cortex-a76": "neoverse-n1"}
#: Enough that filling the pipeline does not show.
_TURNS = 200
#: Where a loop is as good as at its limit.
_GOOD = 1.05
#: Versions of llvm-mca that are looked for, newest first, then the one without a number.
_VERSIONS = range(30, 13, -1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One inner loop of one model on one core."""

    model: str
    target: str
    function: str
    label: str
    #: Whether it adds up from turn to turn; elementwise functions and unrolled windows do not.
    sums: bool
    integer: bool
    #: In one turn: multiply-adds, instructions that do them, all instructions, loads, cycles.
    multiply_adds: int
    multiplications: int
    instructions: int
    loads: int
    stack: int
    cycles: float
    #: Cycles that its loads take by themselves.
    loading: float
    #: Multiply-adds per cycle that the core can do, by its target; None where that is not known.
    limit: float | None

    @property
    def rate(self) -> float:
        """Cycles per 128-bit multiply-add, or int8 multiply-adds per cycle."""
        if self.integer:
            return self.multiply_adds / self.cycles
        return self.cycles / (self.multiply_adds / 4)

    @property
    def share(self) -> float | None:
        """Cycles per cycle that the core would need at its limit."""
        return None if self.limit is None else self.cycles * self.limit / self.multiply_adds

    @property
    def bound(self) -> float | None:
        """Cycles per cycle that its multiplications or its loads need, whichever is more."""
        if self.limit is None:
            return None
        return self.cycles / max(self.multiply_adds / self.limit, self.loading)


def find_llvm_mca() -> str:
    """Return the newest llvm-mca."""
    names = [*(f"llvm-mca-{version}" for version in _VERSIONS), "llvm-mca"]
    found = next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        raise FileNotFoundError("llvm-mca: it is missing; make bench-packages installs it")
    return found


def count_cycles(bodies: Sequence[Sequence[Instruction]], core: str) -> list[float]:
    """Return the cycles that one turn of each body of a loop takes."""
    if not bodies:
        return []
    regions = []
    for number, instructions in enumerate(bodies):
        # Where a branch goes to means nothing to llvm-mca, but it must be a label that it can read.
        lines = (str(each) if not each.branches else _end(each) for each in instructions)
        body = "\n".join(lines)
        regions.append(f"# LLVM-MCA-BEGIN {number}\n{body}\n# LLVM-MCA-END\n")
    command = [
        find_llvm_mca(),
        "-mtriple=aarch64-linux-gnu",
        f"-mcpu={_MODELLED.get(core, core)}",
        f"-iterations={_TURNS}",
        "-json",
    ]
    done = subprocess.run(
        command, input="".join(regions), text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"llvm-mca failed: {done.stderr.strip()[-500:]}")
    found = json.loads(done.stdout)["CodeRegions"]
    cycles = {each["Name"]: each["SummaryView"]["TotalCycles"] / _TURNS for each in found}
    return [cycles[str(number)] for number in range(len(bodies))]


def _loads(loop: Loop) -> list[Instruction]:
    """Return what a loop loads, and what its addresses are counted by."""
    found = [each for each in loop.body if each.name.startswith("ld")]
    # One that loads nothing takes no time: an instruction of no weight stands for it.
    return found or [Instruction("nop", ())]


def _end(branch: Instruction) -> str:
    return str(Instruction(branch.name, (*branch.operands[:-1], ".Lturn")))


def measure_loops(model: Path, target_name: str, *, name: str) -> list[Timing]:
    """Compile a normalized model for a target and time its inner loops."""
    target = load_target(target_name)
    cpu = describe_cpu(target)
    loops = find_loops(compile_assembly(model, cpu))
    timings = []
    whole = count_cycles([each.body for each in loops], cpu.core)
    loading = count_cycles([_loads(each) for each in loops], cpu.core)
    for loop, cycles, alone in zip(loops, whole, loading, strict=True):
        timing = Timing(
            model=name,
            target=target_name,
            function=loop.function,
            label=loop.label,
            sums=loop.sums,
            integer=loop.integer,
            multiply_adds=loop.integers if loop.integer else round(4 * loop.floats),
            multiplications=loop.multiplications,
            instructions=len(loop.body),
            loads=loop.loads,
            stack=loop.stack,
            cycles=cycles,
            loading=alone,
            limit=_limit(target.cluster[0], integer=loop.integer),
        )
        timings.append(timing)
    return timings


def _limit(cluster: Cluster, *, integer: bool) -> float | None:
    """Return the multiply-adds per cycle; a target counts each as two operations."""
    operations = cluster.int8_per_cycle if integer else cluster.fp32_per_cycle
    return None if operations is None else operations / 2


def print_timings(timings: Sequence[Timing], *, everything: bool) -> None:
    """Print the loops that matter, or all, and per target the worst."""
    head = ("function", "model", "target", "multiply-adds", "instructions", "cycles")
    units = ("cycles/fma", "MAC/cycle", "share", "bound", "loads/fma", "stack", "")
    table: list[tuple[str, ...]] = [(*head, *units)]
    for each in timings:
        if everything or each.sums or each.stack:
            table.append(_row(each))
    print_table(table)
    for target in dict.fromkeys(each.target for each in timings):
        mine = [each for each in timings if each.target == target]
        sums = [each for each in mine if each.sums and each.share is not None]
        spilled = sum(each.stack > 0 for each in mine)
        worst = max((each.bound or 0.0 for each in sums), default=0.0)
        good = sum((each.share or 0.0) <= _GOOD for each in sums)
        bound = sum((each.bound or 0.0) <= _GOOD for each in sums)
        print(
            f"{target}: {len(mine)} loops, {spilled} use the stack; of {len(sums)} sums {good} "
            f"within {_GOOD} of the limit, {bound} of it or of their loads, the worst {worst:.2f}"
        )


def _row(each: Timing) -> tuple[str, ...]:
    per_vector = each.multiply_adds / 4 if not each.integer else each.multiplications
    return (
        re.sub(r"^fused_", "", each.function)[:40],
        each.model,
        each.target,
        str(each.multiply_adds),
        str(each.instructions),
        f"{each.cycles:.1f}",
        "" if each.integer else f"{each.rate:.3f}",
        f"{each.rate:.1f}" if each.integer else "",
        "" if each.share is None else f"{each.share:.2f}",
        "" if each.bound is None else f"{each.bound:.2f}",
        f"{each.loads / per_vector:.2f}",
        str(each.stack or ""),
        "" if each.sums else "no sum",
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", help="default: rpi3, rpi4 and rpi5")
    parser.add_argument("--all", action="store_true", help="elementwise loops as well")
    requests, options = read_options(parser)
    timings: list[Timing] = []
    digests: dict[str, str] = {}
    for request in requests:
        model = prepare_model(request)
        name = Path(request.spec).stem
        digests[name] = digest_file(model.path)
        for target in options.target or ["rpi3", "rpi4", "rpi5"]:
            timings += measure_loops(model.path, target, name=name)
    print_timings(timings, everything=options.all)
    if options.json is not None:
        document = {
            "schema_version": SCHEMA,
            "source": digest_tree(Path(edgeopt.__file__).parent / "compile"),
            "models": digests,
            "loops": [asdict(each) for each in timings],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, (json.dumps(document, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
