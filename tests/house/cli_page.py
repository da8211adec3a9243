"""docs/cli.md, generated from the help texts. `python tests/house/cli_page.py` writes it."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from deltarank.cli import deltarank as GROUP
from deltarank.cli.help import OWN_OPTIONS, Command

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

_HEAD = """\
# The command line

This page is generated from the help texts by `python tests/house/cli_page.py`. Results go to stdout; progress, notes
and errors go to stderr. Every error message has a section in [messages.md](messages.md).

Exit codes: 0: success, whatever the verdict; 1: the job failed; 2: invalid usage; 3: the job succeeded, and the result
is not what `--check` asks for; 130: interrupted.

D = W - W0 is the change of a weight matrix (W: finetune, W0: base), and D_r its best approximation of rank r. KLD is
the Kullback-Leibler divergence of next-token distributions. The [glossary](glossary.md) explains the other terms.

BASE and FINETUNE are a folder, a file of weights, or a model on the Hub: `org/name`, `org/name@revision`, or the
address of its page, such as `https://huggingface.co/org/name/tree/revision`. `hf://org/name` is never a local path.
`HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and `NO_COLOR` are honoured.

To let the Tab key complete commands, options and paths, add the line for your shell to its start file (bash needs
version 4.4 or newer):

```sh
eval "$(_DELTARANK_COMPLETE=bash_source deltarank)"    # ~/.bashrc
eval "$(_DELTARANK_COMPLETE=zsh_source deltarank)"     # ~/.zshrc
_DELTARANK_COMPLETE=fish_source deltarank | source     # ~/.config/fish/completions/deltarank.fish
```
"""


def render() -> str:
    """The whole page, from the parameters of the commands: the layout of click's own help differs between versions."""
    return "\n".join([_HEAD, *(_section(words, command) for words, command in commands())])


def commands() -> Iterator[tuple[str, click.Command]]:
    """The words of each command and subcommand, and the command, in alphabetical order."""
    for name, command in sorted(GROUP.commands.items()):
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", each) for inner, each in sorted(command.commands.items()))
        else:
            yield name, command


def _section(words: str, command: click.Command) -> str:
    assert isinstance(command, Command), "its arguments are described, and it has examples"
    lines = [f"## deltarank {words}", "", "```", f"deltarank {words} {_usage(command)}", "```", ""]
    lines += [*inspect.cleandoc(command.help or "").splitlines(), ""]
    if arguments := command.argument_rows():
        lines += ["| argument | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in arguments), ""]
    for title, options in command.option_groups(command.params):
        name = "option" if title == OWN_OPTIONS else title.lower().replace("hub", "Hub")
        lines += [f"| {name} | |", "| --- | --- |", *map(_row, options), ""]
    lines += ["```sh", *(line for sentence, run in command.examples for line in (f"# {sentence}", run)), "```", ""]
    return "\n".join(lines)


def _usage(command: click.Command) -> str:
    names = [p.metavar or (p.name or "").upper() for p in command.params if isinstance(p, click.Argument)]
    has_options = any(isinstance(p, click.Option) for p in command.params)
    return " ".join([*names, *(["[OPTIONS]"] if has_options else [])])


def _row(option: click.Option) -> str:
    spelled = " / ".join(", ".join(f"`{x}`" for x in names) for names in _names(option))
    return f"| {spelled}{_values(option)} | {_help(option)} |"


def _names(option: click.Option) -> list[list[str]]:
    """The names that turn it on, and those that turn it off."""
    return [list(names) for names in (option.opts, option.secondary_opts) if names]


def _values(option: click.Option) -> str:
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return " " + " \\| ".join(f"`{choice}`" for choice in option.type.choices)
    return f" {option.metavar or option.type.name.upper()}"


def _help(option: click.Option) -> str:
    text = " ".join((option.help or "").split()).replace("|", "\\|")
    text = text.replace("headline rank", "[headline rank](glossary.md)")
    return f"{text} [default: {option.default}]" if option.show_default is True else text


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
