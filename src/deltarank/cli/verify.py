"""`deltarank verify`: measure an adapter from disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from deltarank.cli.check import check_option, check_verification
from deltarank.cli.help import FINETUNE_OR_ADAPTER, Command
from deltarank.cli.loading import loading
from deltarank.cli.options import device_option, input_options, json_option, quiet_option, server_option
from deltarank.cli.run_command import quieten_the_hub
from deltarank.cli.streams import out, sayer, width, wrapped
from deltarank.results import FitKind, MergeCheck, count, escape, figure, format_table, percent_kept
from deltarank.system import Default

if TYPE_CHECKING:
    from deltarank.results import FitEnergies, Verification

MOST_MODULES, MOST_UNUSED = 24, 6
_COLUMN = 11


@click.command(
    cls=Command,
    short_help="Measure how much of a finetune an adapter keeps.",
    arguments={
        **FINETUNE_OR_ADAPTER,
        "adapter": "The LoRA adapter to measure: its folder, one of its files, or an adapter on the Hub.",
    },
    examples=[
        ("Is this adapter the best of its rank?", "deltarank verify org/base org/finetune my-lora"),
        ("Was it merged as it should be?", "deltarank verify org/base merged/ my-lora --merged"),
        (
            "In CI: fail unless SGLang gets the best LoRA:",
            "deltarank verify org/base org/finetune my-lora --server sglang --check",
        ),
        (
            "Does a running server apply it?",
            "deltarank verify org/base org/finetune my-lora --live my-lora@http://localhost:8000/v1",
        ),
    ],
)
@click.argument("base")
@click.argument("finetune")
@click.argument("adapter")
@click.option("--merged", is_flag=True, help="Check whether FINETUNE is BASE with ADAPTER merged into it.")
@server_option("Apply the adapter as this server does; portable: check that all of them load it.", None)
@click.option(
    "--live",
    metavar="MODEL@URL",
    help="Ask this server, which has an OpenAI-compatible API, whether it applies ADAPTER. Runs the base here, too.",
)
@click.option("--key", metavar="VAR", help="Environment variable with the key for --live.  [default: OPENAI_API_KEY]")
@click.option(
    "--tolerance",
    type=float,
    metavar="NATS",
    help="With --live: the server answers as a model up to this KL divergence per token.  "
    f"[default: {Default.ENDPOINT_TOLERANCE}]",
)
@input_options
@click.option("--adapter-revision", metavar="REV", help="Branch, tag or commit of ADAPTER on the Hub.")
@device_option()
@check_option("the verdict is that the adapter is optimal (--merged: held exactly, or up to rounding; --live: applied)")
@json_option("all figures")
@quiet_option
def verify(check: bool, as_json: bool, quiet: bool, **job: Any) -> None:
    """Measure how much of the change from BASE to FINETUNE a LoRA adapter keeps, and how much the best LoRA would.

    The adapter may come from any tool. The verdict says whether it is optimal, falls short, has a wrong scale, or does
    not belong to BASE and FINETUNE. Nothing is written.

    With --merged, the usual ways to merge are repeated number by number. The verdict says whether FINETUNE holds the
    adapter exactly, up to rounding, with another strength, in part, or not at all.

    With --live, at most 20 requests of one token each tell whether a running server answers as the base with the
    adapter, as the base alone, or as neither.
    """
    quieten_the_hub(quiet)
    import deltarank

    with loading():
        from deltarank.cli.progress import watching

    with watching(quiet) as progress:
        found = deltarank.verify(**job, progress=progress)
    tell = sayer(quiet)
    for note in found.notes:
        tell(f"Note: {note}")
    lines = _merge_lines if isinstance(found, MergeCheck) else _lines
    out(found.to_json() if as_json else "\n".join(lines(found, width())))
    if check:
        check_verification(found)


def _lines(found: Verification, columns: int) -> Iterator[str]:
    """What a running server does; the sentences, a table of the modules, and the tensors that change nothing."""
    if found.live is not None:
        for sentence in found.live.sentences:
            yield from wrapped(sentence, columns)
        yield ""
    for sentence in found.sentences:
        yield from wrapped(sentence, columns)
    modules = sorted(found.by_module.items(), key=lambda item: -item[1].energy)
    if modules:
        yield ""
        yield from _table(modules, columns, has_scales=found.kind is not FitKind.CALIBRATED)
    yield from _ignored(found, columns)


def _merge_lines(found: MergeCheck, columns: int) -> Iterator[str]:
    """The sentences, and the tensors of the adapter that change nothing."""
    for sentence in found.sentences:
        yield from wrapped(sentence, columns)
    yield from _ignored(found, columns)


def _ignored(found: Verification | MergeCheck, columns: int) -> Iterator[str]:
    for each in found.unused[:MOST_UNUSED]:
        yield from wrapped(f"Ignored: {each.name}: {each.reason}.", columns)
    if len(found.unused) > MOST_UNUSED:
        yield f"... and {count(len(found.unused) - MOST_UNUSED, 'tensor')} more."


def _table(modules: list[tuple[str, FitEnergies]], columns: int, *, has_scales: bool) -> Iterator[str]:
    """The energy kept, the best possible, and the scale, by module. Fitted to predictions, no scale is a wrong one."""
    name_width = columns - 3 * (_COLUMN + 1)
    rows: list[tuple[str, ...]] = [("module", "kept", "best LoRA", "scaled by")]
    for name, energies in modules[:MOST_MODULES]:
        label = escape(name)
        rows.append(
            (
                label if len(label) <= name_width else f"…{label[1 - name_width :]}",
                _kept(energies.share_lost),
                _kept(energies.share_best),
                figure(energies.scaled_by, unknown="-"),
            )
        )
    rows = rows if has_scales else [row[:-1] for row in rows]
    yield from format_table(rows, align="<>", minimum=(0, _COLUMN), gap=1)
    if len(modules) > MOST_MODULES:
        yield f"({count(len(modules) - MOST_MODULES, 'module')} with smaller changes not shown)"


def _kept(share_lost: float | None) -> str:
    if share_lost is None:
        return "-"
    if share_lost > 1:
        return "nothing"
    return percent_kept(share_lost)
