"""`deltarank demo`: train a tiny base and three finetunes, and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltarank.cli.help import Command
from deltarank.cli.options import UserPath, quiet_option
from deltarank.cli.streams import out, say_written, sayer, width
from deltarank.errors import OutputError
from deltarank.results import Results, listing
from deltarank.system import Default, current_command, recorded_command

if TYPE_CHECKING:
    from deltarank.demo import Lab, Reading

FINETUNES = ("lora", "full", "merge")
RANKS = (1, 2, 4, 8, 16, 32, 64)
OUTPUT_RANKS = (2, 8, 32)
"""The ranks whose outputs are measured; each takes some seconds."""
YARDSTICKS = ("q8_0", "q4_0")
SAMPLES, MAX_TOKENS, BATCH = 2, 64, 16
SECONDS_BETWEEN_LINES = 5.0
"""Without a terminal: the whole demo takes few minutes, and nobody writes a log of it."""
ATTRIBUTED = "full"
"""The finetune for which the effect of each module is measured."""
CALIBRATED, CALIBRATION_RANK, CALIBRATION_STEPS = "full", 8, 12
"""The finetune from which a calibrated adapter is extracted; few steps, which take about fifteen seconds."""


@click.command(
    cls=Command,
    short_help="Train a tiny base and three finetunes, and compare them.",
    examples=[
        ("Try everything without any model:", "deltarank demo"),
    ],
)
@click.option(
    "-o",
    "--output",
    type=UserPath(file_okay=False),
    default=Path("deltarank-demo"),
    show_default=True,
    metavar="OUT",
    help="Folder for the models, the runs and the report.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=Default.SEED,
    show_default=True,
    metavar="N",
    help="Seed of the initial weights and of the order of the text.",
)
@click.option("--force", is_flag=True, help="Replace a demo of another seed or version in OUT.")
@quiet_option
def demo(output: Path, seed: int, force: bool, quiet: bool) -> None:
    """Train a tiny base and three finetunes, and show what a LoRA keeps of each.

    A merged LoRA, a full finetune and a merge are trained on the text of Python's own library, and compared with their
    base in weights and outputs. From the full finetune a calibrated LoRA is extracted as well. Takes about two
    minutes on two cores and needs no network. Finished parts are reused.
    """
    from deltarank.demo import Recipe, build_lab, write_reading

    tell = sayer(quiet)
    if not force:
        _refuse_other_folders(output)
    # Before anything imports torch: `build_lab` sets how its threads wait.
    lab = build_lab(output / "lab", seed=seed, say=tell, progress=not quiet, force=force)
    reading = write_reading(lab.texts, output / "reading")
    for name in FINETUNES:
        tell(f"Comparing {name} with the base.")
        _compare(lab.base, lab.folder / name, output / "runs" / name, force=force, quiet=quiet)
    from deltarank.runtime import work_beside

    ranks = listing([str(rank) for rank in OUTPUT_RANKS])
    others = [name for name in FINETUNES if name != CALIBRATED]
    tell(f"In a second process: measuring the outputs of {listing(others)}.")
    with work_beside(_outputs_of, others, lab, reading, output, force, current_command()):
        tell(f"Extracting a LoRA of rank {CALIBRATION_RANK} from {CALIBRATED}, fitted to its predictions.")
        adapter = output / "adapters" / f"calibrated-rank-{CALIBRATION_RANK}"
        _calibrate(lab.base, lab.folder / CALIBRATED, reading.calibration, adapter, force=force, quiet=quiet)
        tell(f"Measuring the outputs of {CALIBRATED}, of its LoRAs of rank {ranks}, and of its quantised copies.")
        run = output / "runs" / CALIBRATED
        _outputs(lab.base, lab.folder / CALIBRATED, reading, run, adapters=[adapter], force=force, quiet=quiet)
    _report([Results.load(output / "runs" / name) for name in FINETUNES], Recipe.lora_rank, output, quiet=quiet)


def _refuse_other_folders(output: Path) -> None:
    """Raises OutputError for a folder with runs or a report that are not the demo's."""
    if (output / "lab" / "lab.json").is_file():
        return
    for name in ("runs", "report.html"):
        if (output / name).exists():
            raise OutputError(
                f"{output} contains {name} but no trained models: it is not a demo's folder, or they were deleted.",
                cure="Choose another folder with -o, or use --force to replace what the demo writes.",
                slug="output-exists",
            )


def _compare(base: Path, finetune: Path, run: Path, *, quiet: bool, **options: Any) -> Results:
    import deltarank
    from deltarank.cli.progress import watching

    with watching(quiet, seconds=SECONDS_BETWEEN_LINES) as progress:
        return deltarank.compare(base, finetune, ranks=RANKS, output=run, progress=progress, **options)


def _calibrate(base: Path, finetune: Path, text: Path, adapter: Path, *, force: bool, quiet: bool) -> None:
    import deltarank
    from deltarank.cli.progress import watching

    with watching(quiet, seconds=SECONDS_BETWEEN_LINES) as progress:
        deltarank.extract_calibrated(
            base,
            finetune,
            output=adapter,
            rank=CALIBRATION_RANK,
            calibrate=[text],
            steps=CALIBRATION_STEPS,
            force=force,
            progress=progress,
        )


def _outputs_of(
    names: Sequence[str], lab: Lab, reading: Reading, output: Path, force: bool, command: str | None
) -> None:
    """In a process that does not know the command that it is a part of."""
    with recorded_command(command) if command else nullcontext():
        for name in names:
            _outputs(lab.base, lab.folder / name, reading, output / "runs" / name, force=force, quiet=True)


def _outputs(base: Path, finetune: Path, reading: Reading, run: Path, *, quiet: bool, **options: Any) -> Results:
    import deltarank
    from deltarank.cli.progress import watching

    with watching(quiet, seconds=SECONDS_BETWEEN_LINES) as progress:
        return deltarank.outputs(
            base,
            finetune,
            ranks=OUTPUT_RANKS,
            yardsticks=YARDSTICKS,
            texts=[reading.text],
            prompts=reading.prompts,
            attribute="module" if finetune.name == ATTRIBUTED else None,
            samples=SAMPLES,
            max_tokens=MAX_TOKENS,
            batch=BATCH,
            output=run,
            progress=progress,
            **options,
        )


def _report(runs: list[Results], rank: int, output: Path, *, quiet: bool) -> None:
    from deltarank.report import runs_side_by_side, write_report

    try:
        written = write_report(runs, output)
    finally:  # if the report fails, the tables are printed all the same
        out(runs_side_by_side(runs, rank=rank, width=width()))
    say_written(written, sayer(quiet))
    out(f"\nReport: {(output / 'report.html').resolve()}")
