"""The commands that compute a report's figures again."""

import shlex

from edgeopt.cli.request import Request


def list_commands(request: Request) -> tuple[tuple[str, str], ...]:
    """Return figures in words, each with the command that computes them from what is there now."""
    options = _options(request)
    board = ["--board", request.board] if request.board else []
    commands = (
        (
            "predicted flash, peak, times; the ledger",
            ["plan", *options, "--layers"],
        ),
        (
            "accuracy, drop or agreement; the plan",
            ["fit", *_chosen(options), "-o", "fit"],
        ),
        ("sizes and accuracy of the plans that were tried", ["plan", *options, "--json"]),
        ("measured flash, peak, latency, parity", ["deploy", *options, *board, "--json"]),
    )
    return tuple((figures, shlex.join(["edgeopt", *words])) for figures, words in commands)


def _options(request: Request) -> list[str]:
    """Spell what the user typed that decides a plan."""
    named = {
        "--target": request.target,
        "--project": None if str(request.project) == "." else str(request.project),
        "--model": request.model,
        "--profile": request.profile,
        "--ram": request.ram,
        "--flash": request.flash,
        "--latency": request.latency,
        "--max-drop": request.max_drop,
        "--prune": request.prune,
        "--effort": None if request.effort == "standard" else request.effort,
    }
    words = [word for name, value in named.items() if value is not None for word in (name, value)]
    words += [word for shape in request.shapes for word in ("--shape", shape)]
    words += [word for value in request.values for word in ("--value", value)]
    if request.trim_vocabulary is not None:
        words.append("--trim-vocabulary" if request.trim_vocabulary else "--no-trim-vocabulary")
    return words


def _chosen(options: list[str]) -> list[str]:
    """Leave out the limit on latency, which a model's file alone cannot be judged by."""
    if "--latency" not in options:
        return options
    at = options.index("--latency")
    return options[:at] + options[at + 2 :]
