"""The compile stage: a model and a target in, a bundle folder out."""

import hashlib
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from edgeopt.artifact import Bundle, BundleFile, Footprint, Model
from edgeopt.compile.cpu import Cpu, describe_cpu
from edgeopt.compile.gate import check_scheduled, unscheduled_functions
from edgeopt.compile.import_onnx import import_model
from edgeopt.compile.kernels.amx_tile import PREFIX as AMX
from edgeopt.compile.lift import Lifted, lift_constants
from edgeopt.compile.lower import lower_module
from edgeopt.compile.objects import separate_kernels, write_objects
from edgeopt.compile.plan_memory import add_forget, plan_arena, planned_arena
from edgeopt.compile.tables import Table, touched_bytes
from edgeopt.compile.weights import read_index, write_weights
from edgeopt.compile.workspace import lend_workspaces, planned_workspace
from edgeopt.model.operators import check_operators
from edgeopt.runner import build_program, link_model, needed_glibc, runtime_bytes
from edgeopt.target import Target
from edgeopt.tiles import Tile, TileKey

PROGRAM = "edgeopt-run"
LIBRARY = "model.so"
WEIGHTS = "weights.bin"
MANIFEST = "manifest.json"
#: Only of a model whose vocabulary was trimmed: what feeds it must use this one.
TOKENIZER = "tokenizer.json"
#: Features that code for one machine may use, as /proc/cpuinfo spells them; the last group only
#: where a kernel was chosen for it.
_BASELINE = {
    "aarch64": ("asimd",),
    "arm": ("neon", "vfpv4"),
    "x86_64": ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "avx512f"),
}


def compile_model(
    model: Model,
    target: Target,
    *,
    directory: Path,
    cache: Path,
    threads: int | None = None,
    token_samples: Mapping[str, np.ndarray] | None = None,
    allow_unscheduled: bool = False,
    tiles: Mapping[TileKey, Tile] | None = None,
) -> Bundle:
    """Compile a model for a target's CPU into a bundle folder.

    threads: how many will run; all cores when None.

    token_samples: integer arrays [S, ...] by input name, from which the pages of embedding tables
    that will be resident are counted.

    tiles: those that were measured to be better than the default.

    Raises OperatorUnsupported: for operators before anything slow starts, and, unless they are
    allowed, for functions that no kernel rule took.
    """
    check_operators(model.path)
    cpu = describe_cpu(target, tiles)
    lowered = lower_module(import_model(model.path), cpu)
    unscheduled = unscheduled_functions(lowered)
    if not allow_unscheduled:
        check_scheduled(unscheduled)
    lifted = lift_constants(lowered.module)
    threads = threads or cpu.threads
    planned = plan_module(lifted.module, cpu, threads)
    arena = planned_arena(planned) + planned_workspace(planned, threads) + _inputs(model)
    directory.mkdir(parents=True, exist_ok=True)
    # A library left by a bundle of the other linkage would be taken for part of this one.
    for name in (LIBRARY, TOKENIZER):
        (directory / name).unlink(missing_ok=True)
    _write_weights(directory / WEIGHTS, lifted, lowered.tables)
    glibc = _write_code(planned, cpu, target, directory=directory, cache=cache)
    resident = _resident_weights(
        directory / WEIGHTS, lifted, lowered.tables, token_samples, target.memory.page
    )
    return _write_manifest(
        directory,
        Bundle(
            path=directory,
            digest="",
            target=target.name,
            files=(),
            inputs=model.inputs,
            outputs=model.outputs,
            footprint=_footprint(directory, target, resident=resident, arena=arena),
            features=_features(target, cpu, planned),
            machine=target.isa.machine,
            glibc=glibc,
            threads=threads,
            core=target.cluster[0].core,
            unscheduled=unscheduled,
        ),
    )


def ship_tokenizer(bundle: Bundle, tokenizer: Path) -> Bundle:
    """Make a tokenizer.json part of a bundle: it is pushed and counted like its other files."""
    shutil.copyfile(tokenizer, bundle.path / TOKENIZER)
    before = (bundle.path / MANIFEST).stat().st_size
    flash = bundle.footprint.flash - before + tokenizer.stat().st_size
    footprint = bundle.footprint.model_copy(update={"flash": flash})
    return _write_manifest(bundle.path, bundle.model_copy(update={"footprint": footprint}))


def plan_module(module: tvm.IRModule, cpu: Cpu, threads: int | None = None) -> tvm.IRModule:
    """Lower the graph to calls and one arena that they share over time.

    threads: how many will run; all cores when None.
    """
    passes = tvm.transform.Sequential(
        [
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
        ]
    )
    with cpu.target():
        lent = lend_workspaces(passes(module), cpu, threads or cpu.threads)
    return add_forget(plan_arena(lent))


def build_executable(
    planned: tvm.IRModule, cpu: Cpu, *, system_lib: bool = False
) -> relax.VMExecutable:
    """Generate code for a planned module."""
    passes = tvm.transform.Sequential(
        [
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )
    target = cpu.target()
    with target:
        return relax.build(planned, target, relax_pipeline=passes, system_lib=system_lib)


def _write_code(
    planned: tvm.IRModule, cpu: Cpu, target: Target, *, directory: Path, cache: Path
) -> str:
    """Write the program and, unless linked in, the model; return the glibc they need."""
    machine, linkage = target.isa.machine, target.software.linkage
    is_static = linkage == "static"
    separated = separate_kernels(planned, cpu, system_lib=is_static)
    executable = build_executable(separated.module, cpu, system_lib=is_static)
    with tempfile.TemporaryDirectory(dir=directory) as draft:
        folder = Path(draft)
        objects = _write_objects(executable, folder)
        objects += write_objects(
            separated, cpu, system_lib=is_static, folder=folder, cache=cache.absolute()
        )
        if is_static:
            program = build_program(machine, linkage, cache=cache, objects=objects)
        else:
            link_model(objects, machine, directory / LIBRARY, cache=cache)
            program = build_program(machine, linkage, cache=cache)
    shutil.copy(program, directory / PROGRAM)
    (directory / PROGRAM).chmod(0o755)
    if is_static:
        return ""
    versions = [needed_glibc(directory / name) for name in (PROGRAM, LIBRARY)]
    return max(versions, key=lambda text: [int(part) for part in text.split(".") if part])


def _write_objects(executable: relax.VMExecutable, folder: Path) -> list[Path]:
    """Write an executable's object files under names that do not depend on the run."""
    kept: list[Path] = []

    def keep(output: str, objects: Sequence[str], options: object = None) -> None:
        del output, options
        for number, path in enumerate(objects):
            kept.append(Path(shutil.copy(path, folder / f"model{number}.o")))

    keep.output_format = "so"  # type: ignore[attr-defined]
    executable.export_library(str(folder / "unused.so"), fcompile=keep)
    return kept


def _write_weights(path: Path, lifted: Lifted, tables: Sequence[Table]) -> None:
    """Write the weights file; tables that are read by rows only are marked so."""
    digests = {table.digest for table in tables}
    random = frozenset(i for i, digest in enumerate(lifted.digests) if digest in digests)
    write_weights(path, lifted.arrays, random=random)


def _resident_weights(
    path: Path,
    lifted: Lifted,
    tables: Sequence[Table],
    samples: Mapping[str, np.ndarray] | None,
    page: int,
) -> int:
    """Predict the bytes of the weights file that become resident.

    All pages of what is read whole, and of each table those that its rows lie in.
    """
    uses: dict[str, list[Table]] = defaultdict(list)
    for table in tables:
        uses[table.digest].append(table)
    pages, touched = {0}, 0
    for record, digest in zip(read_index(path), lifted.digests, strict=True):
        if record.random:
            touched += touched_bytes(uses[digest], samples, page)
        else:
            pages.update(range(record.offset // page, -(-(record.offset + record.size) // page)))
    return len(pages) * page + touched


def _inputs(model: Model) -> int:
    """Count the bytes of the inputs, which the program holds all the time."""
    sizes = (np.prod(each.shape) * np.dtype(each.dtype).itemsize for each in model.inputs)
    return int(sum(sizes))


def _footprint(directory: Path, target: Target, *, resident: int, arena: int) -> Footprint:
    paths = [directory / name for name in (LIBRARY, PROGRAM, WEIGHTS)]
    sizes = {path.name: path.stat().st_size for path in paths if path.exists()}
    runtime = runtime_bytes(target.isa.machine, target.software.linkage)
    return Footprint(
        flash=sum(sizes.values()),
        weights=sizes[WEIGHTS],
        weights_resident=resident,
        arena=arena,
        runtime=runtime + sizes.get(LIBRARY, 0),
    )


def _features(target: Target, cpu: Cpu, planned: tvm.IRModule) -> tuple[str, ...]:
    """List the features that the code needs, of those that the target has."""
    wanted = list(_BASELINE[cpu.machine])
    text = planned.script(show_meta=False)
    if "sdot" in text:
        wanted.append("asimddp")
    if "smmla" in text:
        wanted.append("i8mm")
    if "vpdpbusd" in text:
        wanted.append("avx512_vnni")
    if AMX in text:
        wanted += ["amx_tile", "amx_int8"]
    return tuple(name for name in target.isa.features if name in wanted)


def _write_manifest(directory: Path, bundle: Bundle) -> Bundle:
    """Write the manifest, whose digest is the release's identity."""
    files = tuple(
        _describe_file(directory / name)
        for name in (LIBRARY, PROGRAM, WEIGHTS, TOKENIZER)
        if (directory / name).exists()
    )
    bundle = bundle.model_copy(update={"files": files})
    document = bundle.model_dump(mode="json", exclude={"path", "digest"})
    text = json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n"
    (directory / MANIFEST).write_text(text)
    size = len(text.encode())
    footprint = bundle.footprint.model_copy(update={"flash": bundle.footprint.flash + size})
    digest = hashlib.sha256(text.encode()).hexdigest()
    return bundle.model_copy(update={"digest": digest, "footprint": footprint})


def _describe_file(path: Path) -> BundleFile:
    data = path.read_bytes()
    return BundleFile(
        name=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        executable=path.name == PROGRAM,
    )
