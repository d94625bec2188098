"""What a compressed model computes and takes on Arm, beside what was predicted of it."""

from dataclasses import dataclass
from pathlib import Path

from edgeopt.artifact import Footprint, Model
from edgeopt.cli.places import cache_folder
from edgeopt.compile import compile_model
from edgeopt.compress import predict_footprint
from edgeopt.model.oracle import run_model, seeded_inputs
from tests.compile.kit import distance, make_target
from tests.host.test_compile import run_program


@dataclass(frozen=True, slots=True)
class OnArm:
    """One model's footprint as predicted and as compiled, and how far its output is off."""

    predicted: Footprint
    compiled: Footprint
    distance: float


def run_on_arm(made: Model, folder: Path, *, machine: str = "aarch64") -> OnArm:
    """Compile a model, run it under user-mode emulation and predict what it takes."""
    feeds = seeded_inputs(made, 0)
    target = make_target(machine, static=True)
    samples = {name: value[None] for name, value in feeds.items()}
    bundle = compile_model(
        made, target, directory=folder / "bundle", cache=cache_folder(), token_samples=samples
    )
    assert bundle.unscheduled == ()
    found, _ = run_program(bundle, feeds, folder)
    compiled = bundle.footprint
    code = predict_footprint(made, target, runtime=0, program=0).runtime
    # The program's own size is not what is asked here.
    program = compiled.flash - compiled.weights - code
    predicted = predict_footprint(
        made, target, runtime=compiled.runtime - code, program=program, samples=samples
    )
    return OnArm(predicted, compiled, distance(found, run_model(made, feeds)[0]))
