"""Assembly without branches: order and registers."""

import random
import re

import pytest

from edgeopt.compile.kernels.straight_line import Step, arrange_steps


def add(result: str, *reads: str, latency: int = 4, piece: int = 0) -> Step:
    text = "add v{0}, " + ", ".join(f"v{{{i + 1}}}" for i in range(len(reads)))
    return Step(result=result, text=text, reads=reads, latency=latency, piece=piece)


def run(lines: list[str], registers: dict[int, int]) -> dict[int, int]:
    for line in lines:
        to, *places = map(int, re.findall(r"v(\d+)", line))
        registers[to] = sum(registers[place] for place in places) % 1_000_003
    return registers


@pytest.mark.parametrize("seed", range(20))
def test_any_order_and_any_registers_compute_the_same(seed: int) -> None:
    draw = random.Random(seed)
    steps, values = [], {"a": 3, "b": 5}
    for place in range(40):
        reads = draw.choices(list(values)[-4:], k=2)
        steps.append(add(f"s{place}", *reads, latency=draw.choice([1, 9])))
        values[f"s{place}"] = sum(values[name] for name in reads) % 1_000_003
    lines = arrange_steps(steps, {"a": 0, "b": 1, "s39": 0}, range(2, 30))
    assert len(lines) == 40
    assert run(lines, {0: 3, 1: 5})[0] == values["s39"]


def test_an_independent_chain_fills_the_wait_of_another() -> None:
    chains = [
        [add(f"{c}{i + 1}", f"{c}{i}", piece=p) for i in range(3)] for p, c in enumerate("ab")
    ]
    homes = {"a0": 0, "b0": 1, "a3": 0, "b3": 1}
    lines = arrange_steps([step for chain in chains for step in chain], homes, range(2, 8))
    order = "".join("a" if i in (0, 2, 4) else "b" for i in range(6))
    places = [int(re.findall(r"v(\d+)", line)[1]) for line in lines[:2]]
    assert order == "ababab"
    assert places == [0, 1]


def test_a_register_is_used_again_after_its_last_reader() -> None:
    steps = [add(f"s{i + 1}", f"s{i}") for i in range(30)]
    lines = arrange_steps(steps, {"s0": 0}, [])
    assert set(re.findall(r"v(\d+)", " ".join(lines))) == {"0"}


def test_what_is_overwritten_is_read_by_nobody_afterwards() -> None:
    gain = Step(result="sum", text="mla v{0}, v{2}", reads=("a", "b"), latency=4, replaces=True)
    lines = arrange_steps([gain, add("other", "a", "b")], {"a": 0, "b": 1}, [2])
    assert lines[0].startswith("add")
    assert lines[1] == "mla v0, v1"


def test_too_few_registers_are_a_bug_that_is_noticed() -> None:
    steps = [add("x", "a"), add("y", "a"), add("z", "a", "x", "y")]
    with pytest.raises(AssertionError, match="too few registers"):
        arrange_steps(steps, {"a": 0}, [])
