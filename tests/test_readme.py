"""What README says is what the tool does."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgeopt import cli, errors

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```\w*\n(.*?)```", README, re.DOTALL)


def output_of(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, list(arguments))
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize("kind", ["targets", "profiles"])
def test_the_tables_are_those_that_the_tool_prints(kind: str) -> None:
    assert output_of(kind, "list") in BLOCKS


def test_every_exit_code_is_explained() -> None:
    section = README.partition("## Exit codes")[2].partition("##")[0]
    explained = {
        int(code) for code in re.findall(r"(?:^|; )(\d+) ", section.replace("\n", " ").strip())
    }
    branches = errors.EdgeoptError.__subclasses__()
    assert {each.exit_code for each in branches} | {0, 1} == explained


def test_every_command_shown_exists_with_its_options() -> None:
    lines = [line for block in BLOCKS for line in block.splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("edgeopt ")]
    assert len(commands) >= 4
    for words in commands:
        help_text = output_of(words[1], "--help")
        for option in (word for word in words[2:] if word.startswith("--")):
            assert option in help_text, words


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for name in re.findall(r"^make (\w+)", BLOCKS[0], re.MULTILINE):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE)


def test_no_figure_was_left_out() -> None:
    assert "@@" not in README
