"""The program's own threads: slices of a loop, shared among whoever is free."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeopt.cli.places import cache_folder
from edgeopt.runner.toolchain import TRIPLES, find_toolchain, run_zig

pytestmark = pytest.mark.host

SOURCES = Path(__file__).parents[2] / "edgeopt" / "runner" / "src"

#: A kernel's loop as TVM generates it: iterations from ceil(E / n) * t on. Errors of TVM are a
#: word here, and fail() ends the test.
_DRIVER = r"""
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <tvm/ffi/c_api.h>
#include <tvm/runtime/c_backend_api.h>
#include "threads.h"

static _Thread_local void* raised;
static atomic_int errors_alive;
void TVMFFIErrorMoveFromRaised(TVMFFIObjectHandle* error) { *error = raised; raised = NULL; }
void TVMFFIErrorSetRaised(TVMFFIObjectHandle error) { raised = error; errors_alive++; }
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* text) {
  (void)kind; (void)text; raised = &raised; errors_alive++;
}
int TVMFFIObjectDecRef(TVMFFIObjectHandle error) { (void)error; errors_alive--; return 0; }
void fail(const char* format, ...) { puts(format); exit(3); }

typedef struct { int extent; int bad; atomic_int* seen; } Loop;

static int run(int slice, TVMParallelGroupEnv* environment, void* data) {
  Loop* loop = data;
  int step = (loop->extent + environment->num_task - 1) / environment->num_task;
  for (int i = slice * step; i < (slice + 1) * step && i < loop->extent; ++i) {
    loop->seen[i]++;
    if (i == loop->bad) { TVMFFIErrorSetRaisedFromCStr("a", "b"); return -1; }
  }
  return 0;
}

static int nest(int slice, TVMParallelGroupEnv* environment, void* data) {
  (void)environment;
  return slice < 4 ? TVMBackendParallelLaunch(run, data, 0) : 0;
}

int main(int argc, char** argv) {
  (void)argc;
  atomic_int* seen = calloc(5000, sizeof *seen);
  start_threads(atoi(argv[1]), atoll(argv[2]));
  for (int round = 0; round < 3000; ++round) {
    Loop loop = {.extent = round % 997, .bad = -1, .seen = seen};
    for (int i = 0; i < loop.extent; ++i) seen[i] = 0;
    if (TVMBackendParallelLaunch(run, &loop, 0) != 0) return 4;
    for (int i = 0; i < loop.extent; ++i) if (seen[i] != 1) return 5;
  }
  Loop loop = {.extent = 100, .bad = 37, .seen = seen};
  if (TVMBackendParallelLaunch(run, &loop, 0) != -1 || raised == NULL) return 6;
  raised = NULL;
  loop.bad = -1;
  for (int i = 0; i < loop.extent; ++i) seen[i] = 0;
  if (TVMBackendParallelLaunch(run, &loop, 0) != 0 || raised != NULL) return 7;
  for (int i = 0; i < loop.extent; ++i) if (seen[i] != 1) return 8;
  for (int i = 0; i < loop.extent; ++i) seen[i] = 0;
  if (TVMBackendParallelLaunch(nest, &loop, 0) != 0) return 9;
  int each = seen[0];
  for (int i = 0; i < loop.extent; ++i) if (seen[i] != each || each < 1) return 10;
  puts("good");
  return 0;
}
"""

Run = Callable[[int, int], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("threads")
    (folder / "driver.c").write_text(_DRIVER)
    tools = find_toolchain()
    includes = [tools.tvm / "include", tools.ffi / "include", tools.ffi / "3rdparty/dlpack/include"]
    command = [
        *("cc", "-target", TRIPLES["x86_64", "dynamic"], "-O2", "-D_GNU_SOURCE", "-lpthread"),
        *(f"-I{path}" for path in (SOURCES, *includes)),
        *("driver.c", str(SOURCES / "threads.c"), "-o", "driver"),
    ]
    run_zig(tools, command, cache=cache_folder().absolute(), folder=folder)
    return lambda threads, spin_ns: subprocess.run(
        [folder / "driver", str(threads), str(spin_ns)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("spin_ns", [0, 20_000])
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_iteration_runs_once_and_an_error_reaches_the_caller(
    run: Run, threads: int, spin_ns: int
) -> None:
    done = run(threads, spin_ns)
    assert (done.returncode, done.stdout) == (0, "good\n")
