"""What several commands share: options, each defined once, and the form of --json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

TargetName = Annotated[
    str, typer.Option("--target", "-t", help="Kind of device: a name or a .toml file.")
]
SomeTarget = Annotated[
    str | None,
    typer.Option("--target", "-t", help="Kind of device: a name or a .toml file."),
]
Boards = Annotated[
    Path | None,
    typer.Option(
        "--boards", help="Deploy to every board of this file: fleet.toml.", dir_okay=False
    ),
]
ModelSpec = Annotated[
    str | None,
    typer.Option("--model", "-m", help="model.onnx or module:factory (default: edgeopt.toml)."),
]
ProfileName = Annotated[
    str | None, typer.Option("--profile", "-p", help="What to trade: a name or a .toml file.")
]
BoardAddress = Annotated[
    str | None,
    typer.Option(
        "--board",
        "-b",
        help="user@host[:port], an alias of ~/.ssh/config, 'emulated' or 'local'.",
    ),
]
SshConfig = Annotated[
    Path | None,
    typer.Option("--ssh-config", help="OpenSSH configuration (default: ~/.ssh/config)."),
]
Folder = Annotated[
    Path, typer.Option("--project", "-C", help="Folder that holds edgeopt.toml.", file_okay=False)
]
Shapes = Annotated[
    list[str] | None, typer.Option("--shape", help="Fix an input's shape: name=1x32. Repeatable.")
]
Values = Annotated[
    list[str] | None,
    typer.Option("--value", help="Make an input a constant: sr=16000. Repeatable."),
]
Ram = Annotated[str | None, typer.Option("--ram", help="Peak memory at most, like 32MB.")]
Flash = Annotated[str | None, typer.Option("--flash", help="Stored bytes at most, like 32MB.")]
Latency = Annotated[str | None, typer.Option("--latency", help="p95 at most, like 30ms.")]
MaxDrop = Annotated[
    str | None, typer.Option("--max-drop", help="Loss of the task's metric at most, like 1%.")
]
Html = Annotated[Path | None, typer.Option("--html", help="Write the report as one page here.")]
Reference = Annotated[
    bool,
    typer.Option(
        "--reference/--no-reference", help="Measure the model as it was beside the chosen plan."
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Use nothing from the cache.")]
Unscheduled = Annotated[
    bool,
    typer.Option("--allow-unscheduled", help="Compile operators without a fast kernel, slowly."),
]
TrimVocabulary = Annotated[
    bool | None,
    typer.Option(
        "--trim-vocabulary/--no-trim-vocabulary",
        help="Leave out pieces that the task's texts do not need; token ids change.",
    ),
]
Prune = Annotated[
    str | None,
    typer.Option("--prune", help="Cut so much of the operations, like 50%; 0% cuts nothing."),
]
EffortName = Annotated[
    str,
    typer.Option("--effort", help="How hard to search: quick (no samples), standard or thorough."),
]
Sign = Annotated[
    Path | None,
    typer.Option("--sign", help="Sign the release with this key of OpenSSH (Ed25519)."),
]
Downgrade = Annotated[
    bool,
    typer.Option("--allow-downgrade", help="Let a signed release be older than the last one."),
]
Confine = Annotated[
    bool,
    typer.Option("--confine", help="Find the least memory it runs in, enforced by the kernel."),
]
Wait = Annotated[
    str | None,
    typer.Option(
        "--wait", help="Wait so long for a board that is in use, like 10min.", metavar="TIME"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
AppName = Annotated[
    str | None,
    typer.Option(
        "--app", help="What was deployed (default: edgeopt.toml's, or the last report's)."
    ),
]
Every = Annotated[
    bool, typer.Option("--all", help="Try every plan there is, not only the profile's.")
]
Front = Annotated[
    int | None,
    typer.Option("--front", min=2, metavar="N", help="Show the best mixture at N sizes."),
]
Svg = Annotated[Path | None, typer.Option("--svg", help="Draw the plans of --all or --front here.")]
Layers = Annotated[
    bool, typer.Option("--layers", help="Show what a mixed plan does to every weight, and why.")
]


def print_document(facts: Mapping[str, object]) -> None:
    """Print what --json promises: one document that says which form it has."""
    typer.echo(json.dumps({"schema_version": 1, **facts}, indent=1))
