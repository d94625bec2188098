"""Leave weights of a whole plan as they came where its form is slower on the device.

Only bytes are a reason to run slower: where the limits on them leave room, the form is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.artifact import Choice, Model, Plan
from edgeopt.compress.judge import Bench
from edgeopt.compress.plan import apply_plan

#: Times that differ by a smaller share are the same: what is predicted is no closer.
_SAME = 0.02


@dataclass(frozen=True, slots=True)
class Spared:
    """A plan, and for each weight that it leaves as it came how much slower its form is."""

    plan: Plan
    slower: dict[str, float]

    def leave(self, choices: Sequence[Choice]) -> tuple[Choice, ...]:
        """Leave the same weights as they came among choices for the same model."""
        return _leave(choices, list(self.slower))


def spare_slow(bench: Bench, plan: Plan, hollow: Model, directory: Path) -> Spared:
    """Refuse forms that are slower than float32, those that lose most first, while all limits hold.

    hollow: the model without the values of its weights; bench predicts no times: nothing is.
    """
    parts = bench.cost.parts
    if parts is None:
        return Spared(plan, {})
    names = [each.weight for each in plan.choices if each.method != "float32"]
    before = parts(hollow, names)
    after = parts(apply_plan(hollow, plan, directory=directory), names)
    lost = {name: after[name] - before[name] for name in names}
    slower: dict[str, float] = {}
    for name in sorted(names, key=lambda each: -lost[each]):
        if lost[name] <= _SAME * before[name]:
            continue
        without = plan.model_copy(update={"choices": _leave(plan.choices, [*slower, name])})
        if not bench.refuses(bench.predict(apply_plan(hollow, without, directory=directory))):
            slower[name] = after[name] / before[name] - 1 if before[name] else 1.0
    left = plan.model_copy(update={"choices": _leave(plan.choices, list(slower))})
    return Spared(left, slower)


def _leave(choices: Sequence[Choice], names: Sequence[str]) -> tuple[Choice, ...]:
    """Leave some weights as they came."""
    return tuple(
        Choice(weight=each.weight, method="float32") if each.weight in names else each
        for each in choices
    )
