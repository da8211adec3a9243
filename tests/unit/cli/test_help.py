"""The help of each command."""

import shlex
import sys
from pathlib import Path

import click
import pytest

from commands import RunCommand
from deltarank.cli.help import Command

sys.path.insert(0, str(Path(__file__).parents[2] / "house"))
from cli_page import PAGE, commands

COMMANDS = dict(commands())


@pytest.mark.parametrize("words", COMMANDS)
def test_arguments_are_described_options_grouped_and_the_documentation_named(words: str, command: RunCommand) -> None:
    found = COMMANDS[words]
    assert isinstance(found, Command)
    done = command(*words.split(), "--help")
    text = " ".join(done.out.split())

    assert done.code == 0
    for name, description in found.argument_rows():
        assert f"{name} {' '.join(description.split())}" in text
        assert description.endswith((".", "]"))
    assert all(option.help for option in found.params if isinstance(option, click.Option))
    assert text.endswith(
        f"More: https://github.com/deltarank/deltarank/blob/main/docs/cli.md#deltarank-{words.replace(' ', '-')}"
    )
    assert f"## deltarank {words}\n" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("words", COMMANDS)
def test_the_examples_are_valid(words: str) -> None:
    found = COMMANDS[words]
    assert isinstance(found, Command)
    assert found.examples
    for sentence, line in found.examples:
        given = shlex.split(line)
        assert given[: 1 + len(words.split())] == ["deltarank", *words.split()]
        assert sentence.endswith((":", "?"))
        found.make_context(words, given[1 + len(words.split()) :])  # raises UsageError


@pytest.mark.parametrize(
    ("words", "meant"), [(["comprae", "a", "b"], "compare"), (["compare", "a", "b", "--rank", "8"], "--ranks")]
)
def test_a_command_or_an_option_that_is_nearly_right_is_suggested(
    words: list[str], meant: str, command: RunCommand
) -> None:
    done = command(*words)

    assert done.code == 2
    assert f"Did you mean '{meant}'" in done.err
