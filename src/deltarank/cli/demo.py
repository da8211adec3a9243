"""`deltarank demo`: the article again, small enough for any machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from deltarank.cli.streams import out, say_written, sayer, width
from deltarank.errors import OutputError
from deltarank.results import Results, listing

if TYPE_CHECKING:
    from deltarank.demo import Reading

RANKS = (1, 2, 4, 8, 16, 32, 64)
FINETUNES = ("lora", "full", "merge")
SPOKEN = (2, 8, 32)
"""Ranks of which it is measured what they say; each takes some seconds."""
YARDSTICKS = ("q8_0", "q4_0")
SAMPLES, LONGEST, BATCH = 2, 64, 16
ATTRIBUTED = "full"
"""The finetune of which it is asked which modules matter."""


@click.command(short_help="The article again, small enough for any machine.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("deltarank-demo"),
    show_default=True,
    metavar="OUT",
    help="Folder for the models, the runs and the page.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the first weights and of the order of the text.",
)
@click.option("--force", is_flag=True, help="Replace a demo of another seed or version that lies in OUT.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no remarks on stderr.")
def demo(output: Path, seed: int, force: bool, quiet: bool) -> None:
    """Train a tiny base and three finetunes, and show what a LoRA keeps of each.

    A LoRA (merged), a full finetune and a merge, trained here on the text of Python's own library and compared in their
    weights and in what they say: about three minutes on two cores, without network. Finished parts are used again.
    """
    from deltarank.demo import build_lab, write_reading

    tell = sayer(quiet)
    if not force:
        _refuse_others(output)
    # Before anything loads torch: the lab asks it to leave cores to others (see `build_lab`).
    lab = build_lab(output / "lab", seed=seed, say=tell, progress=not quiet, force=force)
    runs = {}
    for name in FINETUNES:
        tell(f"Comparing the base with {name}.")
        runs[name] = _compared(lab.base, lab.folder / name, output / "runs" / name, force=force, quiet=quiet)
    ranks = listing([str(rank) for rank in SPOKEN])
    reading = write_reading(lab.texts, output / "reading")
    for name in FINETUNES:
        tell(f"Holding what {name} says against the base, LoRAs of rank {ranks}, and itself quantised.")
        runs[name] = _spoken(lab.base, lab.folder / name, reading, output / "runs" / name, force=force, quiet=quiet)
    _conclude(runs, output, quiet=quiet)


def _refuse_others(output: Path) -> None:
    """Raises OutputError for a folder in which others keep runs or a page."""
    if (output / "lab" / "lab.json").is_file():
        return
    for name in ("runs", "report.html"):
        if (output / name).exists():
            raise OutputError(
                f"{output} holds {name} and no lab: it is not a demo's folder, or its models are gone.",
                cure="Give -o another folder, or --force to replace what the demo writes.",
                slug="output-exists",
            )


def _compared(base: Path, finetune: Path, run: Path, *, force: bool, quiet: bool) -> Results:
    import deltarank
    from deltarank.cli.progress import watching

    with watching(quiet) as progress:
        return deltarank.compare(base, finetune, ranks=RANKS, output=run, force=force, progress=progress)


def _spoken(base: Path, finetune: Path, reading: Reading, run: Path, *, force: bool, quiet: bool) -> Results:
    import deltarank
    from deltarank.cli.progress import watching

    with watching(quiet) as progress:
        return deltarank.outputs(
            base,
            finetune,
            ranks=SPOKEN,
            yardsticks=YARDSTICKS,
            texts=[reading.text],
            prompts=reading.prompts,
            attribute="module" if finetune.name == ATTRIBUTED else None,
            samples=SAMPLES,
            max_tokens=LONGEST,
            batch=BATCH,
            output=run,
            force=force,
            progress=progress,
        )


def _conclude(runs: dict[str, Results], output: Path, *, quiet: bool) -> None:
    from deltarank.demo import findings, spoken
    from deltarank.report import write_report

    try:
        written = write_report(list(runs.values()), output)
    finally:  # a page that failed takes no findings with it
        out("\n".join([*findings(runs, width=width()), "", *spoken(runs, width=width())]))
    say_written(written, sayer(quiet))
    out(f"\nThe page: {(output / 'report.html').resolve()}")
