"""The help of each command."""

import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from commands import RunCommand
from deltarank.cli.help import Command, Group

sys.path.insert(0, str(Path(__file__).parents[2] / "house"))
from cli_page import GROUP, PAGE, commands

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
    assert f" Did you mean '{meant}'?" in done.err


def test_what_is_like_nothing_gets_no_suggestion(command: RunCommand) -> None:
    assert command("frobnicate").err.endswith("Error: There is no command 'frobnicate'.\n")
    assert command("compare", "a", "b", "--zyx").err.endswith("Error: There is no option '--zyx'.\n")


@pytest.mark.parametrize("words", [[], ["blind"]])
def test_a_group_shows_its_commands_examples_and_the_documentation(words: list[str], command: RunCommand) -> None:
    text = command(*words, "--help").out
    found = GROUP.commands["blind"] if words else GROUP
    assert isinstance(found, Group)

    listed = re.findall(r"^  (\S+)", text.split("Commands:\n")[1].split("\n\n")[0], re.MULTILINE)
    assert listed == list(found.commands)
    assert text.endswith("https://github.com/deltarank/deltarank/blob/main/docs/cli.md\n")
    for _, line in found.examples:
        _, *given = shlex.split(line)
        assert f"  {line}\n" in text
        assert found.commands[given[len(words)]]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("deltarank comp", ["plain,compare"]),
        ("deltarank blind s", ["plain,score"]),
        ("deltarank extract a b --ser", ["plain,--server"]),
        ("deltarank extract a b --server vllm-", ["plain,vllm-0.31"]),
        ("deltarank compare ./mod", ["file,./mod"]),
        ("deltarank outputs a b --adapter ./mod", ["file,./mod"]),
        ("deltarank explain wrong-b", ["plain,wrong-base"]),
    ],
)
def test_a_shell_completes_commands_options_values_paths_and_messages(
    typed: str, offered: list[str], command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_DELTARANK_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))

    assert command().out.split() == offered
