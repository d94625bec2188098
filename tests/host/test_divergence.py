"""A compiler that is wrong on purpose, on this machine: the node it breaks is named."""

import platform
from pathlib import Path

import onnx
import pytest

from edgeopt.artifact import Bundle, Model
from edgeopt.board.facts import read_facts
from edgeopt.board.local import LocalBoard
from edgeopt.budget import Budget
from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.divergence import locate_divergence
from edgeopt.job import Job, Run
from edgeopt.model import load_model, normalize_model
from edgeopt.profile import Profile
from edgeopt.store import Store
from edgeopt.target import load_target
from edgeopt.trial import Seat, make_samples
from tests.tiny import write_tiny

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="target x86-64; run: on x86-64"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = write_tiny(tmp_path_factory.mktemp("tiny"))
    loaded = load_model("tiny.onnx", directory=folder / "loaded", search=folder)
    return normalize_model(loaded, shapes={}, directory=folder / "model")


@pytest.fixture
def seat(model: Model, tmp_path: Path) -> Seat:
    profile = Profile(name="mine", title="Mine", methods=("float32",), budget=Budget())
    job = Job(
        app="tiny",
        project=tmp_path,
        model="tiny.onnx",
        shapes={},
        values={},
        target=load_target("x86-64"),
        profile=profile,
        task=None,
        kind="native",
    )
    board = LocalBoard(home=tmp_path)
    run = Run(job, Store(tmp_path / "store"), lambda _record: None)
    samples = make_samples(job, model, tmp_path)
    return Seat(run, board, read_facts(board), samples)


def compile_wrongly(model: Model, folder: Path, *, wrong: str, instead: str) -> Bundle:
    """Compile another operator in place of one: what a faulty kernel would compute."""
    graph = onnx.load(model.path)
    for node in graph.graph.node:
        if node.op_type == wrong:
            node.op_type = instead
    onnx.save(graph, model.path)
    return compile_model(
        model,
        load_target("x86-64"),
        directory=folder,
        cache=cache_folder(),
        allow_unscheduled=True,
    )


@pytest.mark.parametrize(
    ("wrong", "instead"), [("ReduceMean", "ReduceSum"), ("Tanh", "Sigmoid"), ("Add", "Sub")]
)
def test_the_node_that_the_compiler_got_wrong_is_named(
    model: Model, seat: Seat, wrong: str, instead: str
) -> None:
    def build(cut: Model, folder: Path) -> Bundle:
        return compile_wrongly(cut, folder, wrong=wrong, instead=instead)

    said = locate_divergence(seat, model, sample=1, tolerance=1e-4, build=build)
    assert f", {wrong} '" in said
    assert "on the board" in said


def test_values_that_are_no_numbers_are_traced_too(model: Model, seat: Seat) -> None:
    def build(cut: Model, folder: Path) -> Bundle:
        return compile_wrongly(cut, folder, wrong="Tanh", instead="Log")

    said = locate_divergence(seat, model, sample=None, tolerance=1.0, build=build)
    assert ", Tanh '" in said
    assert "nan" in said


def test_a_difference_that_does_not_repeat_is_said_to_be_one(model: Model, seat: Seat) -> None:
    def build(cut: Model, folder: Path) -> Bundle:
        return compile_wrongly(cut, folder, wrong="none", instead="none")

    said = locate_divergence(seat, model, sample=0, tolerance=1e-4, build=build)
    assert "did not repeat" in said


def test_nothing_of_the_search_stays_on_the_board(model: Model, seat: Seat, tmp_path: Path) -> None:
    def build(cut: Model, folder: Path) -> Bundle:
        return compile_wrongly(cut, folder, wrong="Tanh", instead="Sigmoid")

    locate_divergence(seat, model, sample=0, tolerance=1e-4, build=build)
    left = [path for path in (tmp_path / ".edgeopt").rglob("*") if path.is_file()]
    assert [path for path in left if path.name in ("model.so", "weights.bin")] == []
