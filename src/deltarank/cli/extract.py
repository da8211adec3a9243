"""`deltarank extract`: write a LoRA that a server loads, and its loss budget."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import deltarank
from deltarank.cli.help import FINETUNE_OR_ADAPTER, Command
from deltarank.cli.loading import loading
from deltarank.cli.options import (
    device_option,
    dry_run_option,
    filter_options,
    force_option,
    input_options,
    json_option,
    output_option,
    quiet_option,
    server_option,
)
from deltarank.cli.ray import ray_option
from deltarank.cli.run_command import default_output, print_plan, quieten_the_hub
from deltarank.cli.streams import out, sayer, width, wrapped
from deltarank.errors import UsageError
from deltarank.results import count, escape, format_table, listing, parse_ranks, percent
from deltarank.servers import DEFAULT_SERVER
from deltarank.system import Default
from deltarank.tensor_names import kind_in_words

if TYPE_CHECKING:
    from deltarank.jobs.extract import ExtractedAdapter

_CALIBRATION = ("calibration_tokens", "steps", "seed")
"""The options that only a calibration has."""


@click.command(
    cls=Command,
    short_help="Extract the best LoRA that a server loads.",
    arguments=FINETUNE_OR_ADAPTER,
    examples=[
        (
            "A LoRA of rank 64 that vLLM loads:",
            "deltarank extract org/base org/finetune -r 64 --server vllm -o my-lora",
        ),
        ("The smallest rank that is good enough:", "deltarank extract org/base org/finetune --max-error 0.3"),
        ("A smaller LoRA from a LoRA:", "deltarank extract org/base org/adapter -r 16"),
        (
            "A LoRA of rank 16 that predicts more like the finetune on such text:",
            "deltarank extract org/base org/finetune -r 16 --calibrate chats.jsonl",
        ),
    ],
)
@click.argument("base")
@click.argument("finetune")
@click.option(
    "-r",
    "--rank",
    metavar="N",
    help="Rank of the adapter, or auto (needs --max-error).  "
    f"[default: {Default.ADAPTER_RANK}; with --max-error: auto]",
)
@click.option(
    "--max-error",
    type=float,
    metavar="X",
    help="Take the smallest servable rank with a relative error ||D - D_r|| / ||D|| of at most X.",
)
@output_option("ADAPTER", "Folder for the adapter", "adapters/ and the finetune's name")
@server_option("The server whose rules the adapter follows; portable: those of all servers.", DEFAULT_SERVER)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="Precision of the factors A and B.  [default: the finetune's]",
)
@click.option(
    "--calibrate",
    multiple=True,
    metavar="TEXT",
    help="Fit A and B to the finetune's predictions on this text: a .txt, .md or .jsonl file, a folder, or the word "
    "own for its own answers; repeatable. Takes minutes to hours.",
)
@click.option(
    "--calibration-tokens",
    type=int,
    metavar="N",
    help="With --calibrate: about how many tokens of the texts are used: 60 % of the documents fit A and B, 20 % "
    f"choose the step, and 20 % are only scored.  [default: {Default.CALIBRATION_TOKENS:,}]",
)
@click.option(
    "--steps",
    type=int,
    metavar="N",
    help="With --calibrate: steps of gradient descent, of about 1,024 tokens each; the best is kept.  "
    f"[default: {Default.CALIBRATION_STEPS}]",
)
@click.option(
    "--seed",
    type=int,
    metavar="N",
    help=f"With --calibrate: seed of the split of the texts, and of the answers.  [default: {Default.SEED}]",
)
@filter_options
@input_options
@device_option()
@force_option
@ray_option
@dry_run_option
@json_option("deltarank.json (or the plan)")
@quiet_option
def extract(
    rank: str | None,
    output: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Extract a LoRA from FINETUNE minus BASE: of those of its rank that the server loads, the best in the weights.

    With --calibrate it is fitted to the finetune's predictions instead, and is farther in the weights.

    Writes ADAPTER in PEFT's format, and prints its loss budget: the shares of the change that are kept, truncated,
    lost to rounding, or in tensors that the server does not load. To resume an interrupted run, repeat the
    same command.
    """
    quieten_the_hub(quiet)
    options["rank"] = _parse_rank(rank)
    calibrates = _take_calibration(options)
    options |= {"output": output or Path("adapters", default_output(options["finetune"]).name), "force": force}
    if dry_run:
        plan = deltarank.plan_calibration if calibrates else deltarank.plan_extraction
        print_plan(plan, options, as_json=as_json, replaceable=("run-differs", "output-exists"))
        return
    _run(options, as_json, quiet, calibrates=calibrates)


def _take_calibration(options: dict[str, Any]) -> bool:
    """Whether the adapter is calibrated. Removes the options of a calibration that were not given.

    Raises:
        UsageError: (slug "only-with-calibrate") one of them is given without --calibrate.
    """
    given = {name: options.pop(name) for name in _CALIBRATION}
    if options["calibrate"]:
        options |= {name: value for name, value in given.items() if value is not None}
        return True
    del options["calibrate"]
    if unused := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
        raise UsageError(
            f"{listing(unused)} {'needs' if len(unused) == 1 else 'need'} --calibrate.",
            cure="Add --calibrate TEXT, or leave the option out.",
            slug="only-with-calibrate",
        )
    return False


def _parse_rank(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    try:
        (rank,) = parse_ranks([text])
    except (UsageError, ValueError):
        raise UsageError(
            f"--rank: {text!r} is not a rank; a rank is a positive integer.",
            cure="Give a rank such as 64, or auto.",
            slug="bad-ranks",
        ) from None
    return rank


def _run(options: dict[str, Any], as_json: bool, quiet: bool, *, calibrates: bool) -> None:
    from deltarank.report import adapter_picture, drawing_process

    tell = sayer(quiet)
    with drawing_process():
        with loading():
            from deltarank.cli.progress import watching
            from deltarank.jobs.extract import extract_with_picture
        with watching(quiet) as progress:
            if calibrates:
                adapter = deltarank.extract_calibrated(**options, progress=progress)
            else:
                adapter = extract_with_picture(**options, draw=adapter_picture, progress=progress)
    out(adapter.to_json() if as_json else "\n".join(_lines(adapter, width())))
    tell(f"wrote {adapter.folder}")
    if not calibrates:  # a calibration has measured it
        tell(f"Measure its behaviour: {_measure(options, adapter.folder)}")
    tell(f"Check it: {_check(options, adapter.folder)}")


def _check(options: dict[str, Any], folder: Path) -> str:
    """The command that verifies the adapter against the same revisions, as its server applies it, for a shell."""
    server = options["server"]
    return _command("verify", options, str(folder), *([] if server in ("portable", "peft") else ["--server", server]))


def _measure(options: dict[str, Any], folder: Path) -> str:
    """The command that measures its outputs and states them on its model card."""
    return _command("outputs", options, "--adapter", str(folder), "--update-cards")


def _command(name: str, options: dict[str, Any], *more: str) -> str:
    words = ["deltarank", name, options["base"], options["finetune"], *more]
    for name, option in (("base_revision", "--base-revision"), ("revision", "--revision")):
        words += [option, options[name]] if options[name] else []
    return shlex.join(words)


def _lines(adapter: ExtractedAdapter, columns: int) -> list[str]:
    """What was reached by a calibration, the sentence, the budget, and the share kept of each module."""
    budget = adapter.budget
    kinds = [
        (percent(share), f"{kind_in_words(kind)}, {count(number, 'tensor')}")
        for kind, (number, share) in budget.by_kind().items()
    ]
    sentences = [
        *(adapter.calibration.sentences if adapter.calibration else ()),
        f"The adapter {adapter.sentence}.",
        *filter(None, [budget.limit(), adapter.noise_sentence]),
    ]
    tables = [
        *format_table(_budget_rows(adapter), align="><", minimum=(12,)),
        *format_table(kinds, align="><", minimum=(16,)),
        "",
        *_module_lines(adapter),
    ]
    return [
        *(line for sentence in sentences for line in wrapped(sentence, columns)),
        "",
        *map(escape, tables),
        *wrapped(f"{adapter.load_check.sentence}.", columns),
    ]


def _budget_rows(adapter: ExtractedAdapter) -> list[tuple[str, str]]:
    """What is left out stands last: its kinds follow."""
    kept = f"kept ({why})" if (why := adapter.budget.why_negative) else "kept"
    labels = [kept, f"truncated at rank {adapter.rank}", "lost to rounding A and B"]
    rows = list(zip(adapter.budget.percents, [*labels, "given up to fit the predictions", "left out"], strict=True))
    return rows if adapter.calibration else [*rows[:3], *rows[4:]]


def _module_lines(adapter: ExtractedAdapter) -> list[str]:
    """The share kept of each module. Of fitted factors, deltarank.json has it: they were not fitted to keep much."""
    if adapter.calibration and adapter.calibration.steps:
        return []
    modules = [
        (percent(kept), f"{module}, {count(number, 'matrix', 'matrices')}") for module, number, kept in adapter.modules
    ]
    return [
        "Share kept of each module's change, rounding included:",
        *format_table(modules, align="><", minimum=(12,)),
        "",
    ]
