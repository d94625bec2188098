"""Whether this machine has the memory that a search needs, before it starts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edgeopt.artifact import Choice, Model
from edgeopt.board.procfs import parse_meminfo
from edgeopt.compress.cost import stored_bytes
from edgeopt.errors import HostTooSmall
from edgeopt.model.graph import Weight, weights
from edgeopt.model.skim import skim_model
from edgeopt.units import format_bytes

#: Python with onnx, onnxruntime and SciPy, and the samples of a task.
_OWN = 500_000_000
#: Copies of the model in float32 at once: as it came, what a form makes of it in two threads, and
#: what onnxruntime holds of the probe and of a compressed model.
_COPIES = 8
#: Doubles for each pair of inputs of a layer: H, its inverse, and the factor of that.
_SQUARES = 4


def require_memory(
    model: Model, choices: Mapping[str, Sequence[Choice]], *, free: int | None = None
) -> None:
    """Raise HostTooSmall where a search may need more bytes than are free (None: as measured)."""
    available = free_memory() if free is None else free
    needed = predict_memory(model, choices)
    if available is not None and needed > available:
        raise HostTooSmall(
            "this machine has too little free memory for the search",
            why=f"it may take {format_bytes(needed)}, and {format_bytes(available)} are free",
            fix="end other programs, or take --effort quick or a profile with mixed = false",
        )


def predict_memory(model: Model, choices: Mapping[str, Sequence[Choice]]) -> int:
    """Predict the most bytes that a search has resident at once, from above."""
    loaded = skim_model(model.path)
    stored = sum(map(stored_bytes, loaded.graph.initializer))
    fitted = [
        each
        for each in weights(loaded.graph)
        if each.role != "table" and any(choice.learns for choice in choices.get(each.name, ()))
    ]
    return _OWN + _COPIES * stored + 8 * _SQUARES * sum(_squares(fitted))


def _squares(found: Iterable[Weight]) -> Iterable[int]:
    """List the sizes of the Hessians of layers, of which those that share inputs have one."""
    for each in found:
        depth = each.size // each.shape[each.axis]
        yield depth * depth


def free_memory() -> int | None:
    """Return the bytes that this process may still take; None where the system does not say.

    That is what the kernel calls available, or less where a control group allows less.
    """
    found = parse_meminfo(_read(Path("/proc/meminfo"))).get("MemAvailable")
    group = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    used = _read(Path("/sys/fs/cgroup/memory.current")).strip()
    if group.isdecimal() and used.isdecimal():
        left = max(int(group) - int(used), 0)
        return left if found is None else min(found, left)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
