"""The help of a command: its arguments, its options in groups, examples, and the address of the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

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
        if self.examples:
            with formatter.section("Examples"):
                for sentence, line in self.examples:
                    formatter.write(f"  # {sentence}\n  {line}\n")  # not wrapped: a line is copied into a shell
        formatter.write(f"\nMore: {documentation_of(ctx.command_path)}\n")


def _title(option: click.Option) -> str:
    """The group of an option."""
    name = "help" if "--help" in option.opts else option.name
    return next((title for title, names in _GROUPS.items() if name in names), OWN_OPTIONS)


def documentation_of(command_path: str) -> str:
    """The address of the section about a command."""
    return f"{DOCUMENTATION}/cli.md#{'-'.join(command_path.split())}"
