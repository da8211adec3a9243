"""What commands have in common: their help, with examples and the address of the documentation, and suggestions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from click.shell_completion import CompletionItem

from deltarank.system import did_you_mean, near_names

DOCUMENTATION = "https://github.com/deltarank/deltarank/blob/main/docs"

A_MODEL = "a folder, a file of weights, or a model on the Hub (org/name, org/name@revision, or the address of its page)"

FINETUNE_OR_ADAPTER = {"finetune": "The finetuned model, named likewise, or a LoRA adapter on BASE."}

_ARGUMENTS = {"base": f"The model before finetuning: {A_MODEL}.", "finetune": "The finetuned model, named likewise."}
"""What an argument is, unless the command says something else."""

_GROUPS: Mapping[str, tuple[str, ...]] = {
    "Models on the Hub": ("base_revision", "revision", "adapter_revision", "fetch"),
    "Tensors": ("include", "exclude"),
    "Computation": ("solver", "tolerance", "audit", "dtype", "device", "batch", "seed", "trust_remote_code"),
    "Output": ("output", "force", "dry_run", "no_report", "as_json", "as_csv", "quiet", "help"),
}
"""The options that several commands share. Those that make a command what it is come first, as "Options"."""

OWN_OPTIONS = "Options"

_PATHS = ("DIR", "FILE", "PATH", "REF", "TEXT")
"""The metavars of options that take a path on this machine, or something else."""


class _Reference(click.types.StringParamType):
    """A path, or the name of a model: a shell completes paths."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class Command(click.Command):
    """A command with described arguments and with examples.

    Args:
        examples: a sentence and a command line each.
        arguments: the name of an argument and what it is, where it is not the same for all commands.
    """

    def __init__(
        self,
        *args: Any,
        examples: Sequence[tuple[str, str]] = (),
        arguments: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.examples = examples
        self._arguments = {**_ARGUMENTS, **(arguments or {})}
        for each in self.params:
            if each.type is click.STRING and (isinstance(each, click.Argument) or each.metavar in _PATHS):
                each.type = _Reference()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _suggestions(ctx):
            return super().parse_args(ctx, args)

    def argument_rows(self) -> list[tuple[str, str]]:
        """Each argument and what it is."""
        return [
            (
                each.human_readable_name.upper() if each.metavar is None else each.metavar,
                self._arguments[each.name or ""],
            )
            for each in self.params
            if isinstance(each, click.Argument)
        ]

    def option_groups(self, options: Sequence[click.Parameter]) -> Iterator[tuple[str, list[click.Option]]]:
        """The title of each group, and its options in their order; none is empty."""
        groups: dict[str, list[click.Option]] = {title: [] for title in (OWN_OPTIONS, *_GROUPS)}
        for each in options:
            if isinstance(each, click.Option):
                groups[_title(each)].append(each)
        filled = [(title, inside) for title, inside in groups.items() if inside]
        yield from filled if len(filled) > 1 else ((OWN_OPTIONS, inside) for _, inside in filled)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if rows := self.argument_rows():
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        for title, options in self.option_groups(self.get_params(ctx)):
            records = [record for option in options if (record := option.get_help_record(ctx)) is not None]
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, self.examples)
        formatter.write(f"\nMore: {documentation_of(ctx.command_path)}\n")


class Group(click.Group):
    """Commands in the order in which they were added, with examples.

    Args:
        examples: a sentence and a command line each.
    """

    def __init__(self, *args: Any, examples: Sequence[tuple[str, str]] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = examples

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _suggestions(ctx):
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if word not in self.commands and not word.startswith("-") and not ctx.resilient_parsing:
            near = near_names(word, self.commands)
            raise click.UsageError(f"There is no command {word!r}.{did_you_mean(near)}", ctx)
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_examples(formatter, self.examples)
        formatter.write("\n")
        formatter.write_text(f"`{ctx.command_path} COMMAND --help` has more. Documentation: {DOCUMENTATION}/cli.md")


@contextmanager
def _suggestions(ctx: click.Context) -> Iterator[None]:
    """An option that does not exist is answered with those that are spelled alike."""
    try:
        yield
    except click.NoSuchOption as error:
        spelled = (name for each in ctx.command.params for name in (*each.opts, *each.secondary_opts))
        known = {name.lstrip("-"): name for name in spelled if name.startswith("-")}
        near = [known[name] for name in near_names(error.option_name.lstrip("-"), known)]
        raise click.UsageError(f"There is no option {error.option_name!r}.{did_you_mean(near)}", ctx) from None


def _write_examples(formatter: click.HelpFormatter, examples: Sequence[tuple[str, str]]) -> None:
    if examples:
        with formatter.section("Examples"):
            for sentence, line in examples:
                formatter.write(f"  # {sentence}\n  {line}\n")  # not wrapped: a line is copied into a shell


def _title(option: click.Option) -> str:
    """The group of an option."""
    name = "help" if "--help" in option.opts else option.name
    return next((title for title, names in _GROUPS.items() if name in names), OWN_OPTIONS)


def documentation_of(command_path: str) -> str:
    """The address of the section about a command."""
    return f"{DOCUMENTATION}/cli.md#{'-'.join(command_path.split())}"
