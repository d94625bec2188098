"""The arena of real models: no larger than what lives at a time, and never two in one place."""

from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import pytest
import tvm
from onnx import helper
from tvm import relax

from edgeopt.compile.build import build_executable, plan_module
from edgeopt.compile.cpu import Cpu, describe_cpu
from edgeopt.compile.import_onnx import import_model
from edgeopt.compile.lifetimes import Allocation, bindings_of, is_allocation, read_allocations
from edgeopt.compile.lower import lower_module
from edgeopt.compile.offsets import largest_live_set
from edgeopt.compile.plan_memory import planned_arena
from edgeopt.compile.weights import ALIGNMENT
from edgeopt.compile.workspace import planned_workspace
from edgeopt.model.oracle import run_model
from tests.bench.suite import suite_folder, write_suite
from tests.compile.kit import Array, distance, make_target

pytestmark = pytest.mark.host

MODELS = ("encoder", "mobilenet", "mobilenet.s8", "textcnn", "minilm-32", "bilstm")


@pytest.fixture(scope="module")
def cpu() -> Cpu:
    return describe_cpu(make_target("x86_64"))


def suite_model(name: str) -> Path:
    path = suite_folder() / f"{name}.onnx"
    if not path.exists():
        write_suite(suite_folder(), only=(name.split(".")[0],))
    return path


def plan(path: Path, cpu: Cpu) -> tvm.IRModule:
    return plan_module(lower_module(import_model(path), cpu).module, cpu, 2)


def draw_feeds(path: Path, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    feeds = {}
    for each in onnx.load(path).graph.input:
        kind = helper.tensor_dtype_to_np_dtype(each.type.tensor_type.elem_type)
        shape = [dim.dim_value for dim in each.type.tensor_type.shape.dim]
        drawn = random.integers(0, 2, shape) if kind.kind in "iu" else random.normal(size=shape)
        feeds[each.name] = drawn.astype(kind)
    return feeds


def places(planned: tvm.IRModule) -> list[tuple[Allocation, int]]:
    """Read every tensor's offset back from the planned module."""
    offsets = {
        binding.var: int(binding.value.args[1].value)
        for binding in bindings_of(planned["main"])
        if is_allocation(binding.value)
    }
    return [(each, offsets[each.variable]) for each in read_allocations(planned["main"])]


@pytest.mark.parametrize("name", MODELS)
def test_an_arena_holds_no_more_than_lives_at_a_time_and_the_outputs_are_right(
    name: str, cpu: Cpu
) -> None:
    path = suite_model(name)
    planned = plan(path, cpu)
    placed = places(planned)
    for (one, a), (two, b) in combinations(placed, 2):
        together = one.lifetime.first <= two.lifetime.last
        together = together and two.lifetime.first <= one.lifetime.last
        apart = a + one.lifetime.size <= b or b + two.lifetime.size <= a
        assert apart or not together
    assert all(offset % ALIGNMENT == 0 for _, offset in placed)
    bound = largest_live_set([each.lifetime for each, _ in placed])
    assert bound <= planned_arena(planned) <= 1.1 * bound
    assert planned_workspace(planned, 2) == 0
    run = relax.VirtualMachine(build_executable(planned, cpu), tvm.cpu())["main"]
    kept = []
    for seed in (0, 1):
        feeds = draw_feeds(path, seed)
        result = run(*(tvm.runtime.tensor(value) for value in feeds.values()))
        outputs = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
        kept.append((outputs, run_model(path, feeds)))
    # Compared after the second run: what a caller holds is not written over.
    for outputs, wanted in kept:
        for found, right in zip(outputs, wanted, strict=True):
            limit = 5e-2 if name.endswith(".s8") else 1e-5
            assert distance(found.numpy().reshape(right.shape), right) < limit
