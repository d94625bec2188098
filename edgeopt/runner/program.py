"""Building the device program, and linking a model's code for it."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from filelock import FileLock

from edgeopt import __version__
from edgeopt.errors import ConfigError
from edgeopt.runner.elf import defined_symbols, elf_machine, undefined_symbols
from edgeopt.runner.toolchain import (
    CPU_FLAGS,
    PINS,
    TRIPLES,
    Linkage,
    Machine,
    Toolchain,
    digest_of,
    find_toolchain,
    run_zig,
)
from edgeopt.scratch import scratch

PROGRAM = "edgeopt-run"

_HERE = Path(__file__).parent
_UNITS = ("tvm_ffi_unit.cc", "tvm_runtime_unit.cc")

#: Size matters more than speed here: the kernels are in the model, the rest is bookkeeping.
_COMMON = (
    "-Os",
    "-g0",
    "-fPIC",
    "-ffunction-sections",
    "-fdata-sections",
    "-fvisibility=hidden",
    "-D_GNU_SOURCE",
    # Files above 2 GiB on 32-bit machines.
    "-D_FILE_OFFSET_BITS=64",
    "-DNDEBUG",
)
_C = ("-std=c11", "-Wall", "-Wextra", "-Werror")
_CXX = (
    "-std=c++17",
    # Warnings of sources that are not ours.
    "-w",
    # Zig's headers leave tvm-ffi's own detection undecided.
    "-DTVM_FFI_CMAKE_LITTLE_ENDIAN=1",
    "-DTVM_FFI_USE_LIBBACKTRACE=0",
    "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0",
)
_LINK: dict[Linkage, tuple[str, ...]] = {
    # -rdynamic: model.so finds TVM's C ABI in the program that opens it.
    "dynamic": ("-rdynamic", "-ldl", "-lpthread"),
    "static": ("-static",),
}
_LINK_COMMON = ("-lc++", "-lm", "-s", "-Wl,--gc-sections", "-Wl,--build-id=none")

#: What model.so may leave undefined beside libc and libm: TVM's C ABI, in the program.
_RUNTIME_PREFIXES = ("TVMFFI", "TVMBackend")


def _includes(tools: Toolchain) -> tuple[str, ...]:
    shims = _HERE / "shims"
    folders = (
        shims,
        # TVM includes "../support/x.h" and "../../support/x.h" relative to its own sources;
        # from these two folders both lead to the shims.
        shims / "support",
        shims / "tvm" / "support",
        tools.tvm / "include",
        tools.ffi / "include",
        tools.ffi / "3rdparty" / "dlpack" / "include",
    )
    return tuple(f"-I{folder}" for folder in folders)


def _prefix_maps(tools: Toolchain) -> tuple[str, ...]:
    """Keep this machine's paths out of the program: __FILE__ is part of TVM's messages."""
    folders = {"tvm": tools.tvm, "tvm_ffi": tools.ffi, "runner": _HERE, "zig": tools.zig.parent}
    return tuple(f"-ffile-prefix-map={folder}={name}" for name, folder in folders.items())


def _defines() -> tuple[str, ...]:
    return (
        f'-DEDGEOPT_VERSION="{__version__}"',
        f'-DEDGEOPT_TVM_VERSION="{PINS["apache-tvm"]}"',
    )


def _sources() -> list[Path]:
    folders = (_HERE / "src", _HERE / "shims")
    return sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())


def _publish(place: Path, build: Callable[[Path], None]) -> Path:
    """Make a folder once, whoever asks first; it appears complete or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if place.is_dir():
            return place
        with scratch(place.parent, f"{place.name}.") as draft:
            work = draft / "work"
            work.mkdir()
            build(work)
            work.rename(place)
    return place


def _compile_runtime(tools: Toolchain, triple: tuple[str, ...], *, cache: Path) -> Path:
    """Compile TVM's runtime and our C sources to object files; returns their folder."""
    units = [
        [*triple, *_COMMON, *_CXX, *_includes(tools), f"-I{root}", *_prefix_maps(tools)]
        for root in (tools.ffi, tools.tvm)
    ]
    ours = [*triple, *_COMMON, *_C, *_defines(), *_includes(tools), *_prefix_maps(tools)]
    # Paths stay out of the key: the same sources in another place give the same objects.
    options = [*triple, *_COMMON, *_C, *_CXX, *_defines(), *tools.versions]
    key = digest_of(options, _sources())[:20]

    def build(work: Path) -> None:
        programs = [["c++", *unit, "-c"] for unit in units]
        commands = [
            [*program, str(_HERE / "src" / name), "-o", f"{name}.o"]
            for program, name in zip(programs, _UNITS, strict=True)
        ]
        commands.append(["cc", *ours, "-c", *map(str, sorted((_HERE / "src").glob("*.c")))])
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(lambda each: run_zig(tools, each, cache=cache, folder=work), commands))

    return _publish(cache / "runner" / f"objects-{key}", build)


def build_program(
    machine: Machine, linkage: Linkage, *, cache: Path, objects: Sequence[Path] = ()
) -> Path:
    """Build the device program, stripped; the result is kept in cache under its inputs' digest.

    With static linkage, objects are a model's system-library objects and become part of the
    program; dynamic programs take none. Raises ConfigError when a compiler fails.
    """
    assert linkage == "static" or not objects
    tools = find_toolchain()
    cache = cache.absolute()
    triple = ("-target", TRIPLES[machine, linkage], *CPU_FLAGS[machine])
    runtime = _compile_runtime(tools, triple, cache=cache)
    flags = (*triple, *_LINK[linkage], *_LINK_COMMON)
    key = digest_of([runtime.name, *flags], objects)[:20]

    def build(work: Path) -> None:
        inputs = [*sorted(runtime.glob("*.o")), *(path.absolute() for path in objects)]
        arguments = ["cc", *flags, *map(str, inputs), "-o", PROGRAM]
        run_zig(tools, arguments, cache=cache, folder=work)

    return _publish(cache / "runner" / f"program-{key}", build) / PROGRAM


def unresolved_symbols(path: Path, program: Path | None = None) -> tuple[str, ...]:
    """Name the functions that a file calls and no board has, sorted.

    A function of the C library carries its version. What the program gives to the code that it
    opens is looked up in it; without one, TVM's C ABI counts as given.
    """
    given = defined_symbols(program) if program is not None else frozenset[str]()
    return tuple(
        sorted(
            name
            for name, version in undefined_symbols(path).items()
            if not version.startswith("GLIBC_")
            and name not in given
            and not (program is None and name.startswith(_RUNTIME_PREFIXES))
        )
    )


def _check_symbols(path: Path) -> None:
    """Refuse code whose calls would end in nothing: the board would learn it in mid-inference."""
    unknown = unresolved_symbols(path)
    if unknown:
        raise ConfigError(
            "the compiled model calls functions that no board has",
            why=", ".join(unknown[:10]),
            fix="report this: it is a missing kernel or runtime function",
        )


def link_model(
    objects: Sequence[Path], machine: Machine, output: Path, *, cache: Path | None = None
) -> None:
    """Link a model's objects to a shared library that the dynamic program opens.

    Without cache, zig rebuilds its C library stubs in a throwaway folder: slower by seconds.
    Raises ConfigError when the linker fails or a symbol would be missing on the board.
    """
    tools = find_toolchain()
    arguments = [
        "cc",
        *("-target", TRIPLES[machine, "dynamic"], *CPU_FLAGS[machine]),
        *("-shared", "-nostartfiles", "-s", "-lm"),
        *("-Wl,--gc-sections", "-Wl,--build-id=none", "-Wl,-soname,model.so", "-Wl,-z,now"),
        *(str(path.absolute()) for path in objects),
        *("-o", "model.so"),
    ]
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".link.") as draft:
        work = Path(draft)
        run_zig(tools, arguments, cache=(cache or work).absolute(), folder=work)
        assert elf_machine(work / "model.so") == machine
        _check_symbols(work / "model.so")
        shutil.move(work / "model.so", output)
