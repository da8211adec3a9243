"""`deltarank blind`: a fair test of whether people can tell two models apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltarank.cli.help import Command, Group
from deltarank.cli.options import UserPath, json_option, number_option, output_option, quiet_option
from deltarank.cli.streams import out, say_written, sayer, width, wrapped
from deltarank.results import escape, format_table
from deltarank.system import Default

if TYPE_CHECKING:
    from deltarank.results import BlindScore, VoterScore

MOST_VOTERS = 40
_HEADINGS = ("", "right", "luck", "e-value", "95 % interval", "sure pairs", "one model twice", "liked better")

_file = UserPath()


@click.group(
    cls=Group,
    short_help="Test blind whether people can tell two models apart.",
    examples=[
        ("A page to vote on, and its key:", "deltarank blind make runs/mine -o blind"),
        ("Score what the voters sent:", "deltarank blind score blind/key.json votes/*.json"),
    ],
)
def blind() -> None:
    """Test blind whether people can tell the finetune from what is served in its place.

    `make` writes a page to vote on, and a key that says who wrote what; `score` scores the votes, and refuses a key
    that was changed after the page was made.
    """


@blind.command(
    cls=Command,
    short_help="Write the page to vote on, and the key.",
    arguments={"run": "Folder of a run with the results of `deltarank outputs`, unless --a and --b are given."},
    examples=[
        ("A test of the finetune against its rank-64 LoRA:", "deltarank blind make runs/mine --candidate 'rank 64'"),
        ("A test of two models from files of answers:", "deltarank blind make --a finetune.jsonl --b lora.jsonl"),
    ],
)
@click.argument("run", required=False, metavar="[RUN]", type=_file)
@output_option("BLIND", "Folder for vote.html and key.json", "blind")
@click.option(
    "--candidate", metavar="NAME", help="Model of RUN to test against the finetune.  [default: the headline rank]"
)
@click.option(
    "--a",
    type=_file,
    metavar="FILE",
    help='Instead of RUN: answers of one model, a .jsonl file with lines {"prompt": ..., "answer": ...}.',
)
@click.option("--b", type=_file, metavar="FILE", help="Answers of the other model to the same prompts.")
@click.option(
    "--base",
    type=_file,
    metavar="FILE",
    help="Answers of a model that anybody should be able to tell from that of --a.",
)
@number_option("--pairs", 'Pairs with the question "who wrote X: A or B?"; catch pairs are added.', Default.BLIND_PAIRS)
@number_option("--preferences", 'Pairs with the question "which do you like better?".', Default.BLIND_PREFERENCES)
@number_option("--characters", "Characters of the longest text that is shown.", Default.BLIND_CHARACTERS)
@number_option("--people", "How many people you expect to vote.", Default.BLIND_PEOPLE)
@click.option("--force", is_flag=True, help="Replace a test in BLIND.")
@json_option("what the test consists of, and what it can show,")
@quiet_option
def make(output: Path | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write a blind test of the finetune of RUN against one of its candidates.

    RUN is a folder with the results of `deltarank outputs`. BLIND/vote.html is one file that works offline: send it to
    the voters. BLIND/key.json says which text is whose: keep it to yourself. Its SHA-256, which is printed, is on the
    page, too. Also prints the highest score that is possible, and how many votes are needed.
    """
    import deltarank

    test = deltarank.make_blind_test(options.pop("run"), output=output or Path("blind"), **options)
    lines = [line for sentence in test.lines() for line in wrapped(sentence, width())]
    out(json.dumps(test.to_plain(), indent=1) if as_json else "\n".join(lines))
    say_written((test.page, test.folder / "key.json"), sayer(quiet))


@blind.command(
    cls=Command,
    short_help="Score the votes.",
    arguments={"key": "The key.json of the test, or its folder.", "votes": "The files that the voters sent."},
    examples=[("Score all votes:", "deltarank blind score blind/key.json votes/*.json")],
)
@click.argument("key", type=_file)
@click.argument("votes", nargs=-1, required=True, metavar="VOTES...", type=_file)
@click.option(
    "--run", type=_file, metavar="RUN", help="Folder of the run.  [default: where it was when the test was made]"
)
@json_option("the score")
@quiet_option
def score(key: Path, votes: tuple[Path, ...], run: Path | None, as_json: bool, quiet: bool) -> None:
    """Score the VOTES of a blind test: how many were right, how often luck does as well, and what is possible at best.

    KEY is the key.json of the test, VOTES are the files that the voters sent. The score is added to the results and
    the report of the run.
    """
    import deltarank

    found = deltarank.score_blind_test(key, votes, run=run)
    out(found.to_json() if as_json else "\n".join(_lines(found)))
    tell = sayer(quiet)
    for note in found.notes:
        tell(f"Note: {note}.")
    _write_report(key, run, tell)


def _write_report(key: Path, run: Path | None, tell: Any) -> None:
    from deltarank.jobs.blind import run_of_test
    from deltarank.report import write_report
    from deltarank.results import Results

    folder = run_of_test(key, run)
    if folder is None:
        tell("Note: the run of this test is not known, or not where it was: the score is in no report (see --run).")
        return
    written = write_report([Results.load(folder)], folder)
    say_written((folder / "results.json", *written), tell)


def _lines(found: BlindScore) -> Iterator[str]:
    for sentence in found.sentences:
        yield from wrapped(sentence, width())
    yield ""
    people = found.voters[:MOST_VOTERS]
    shown = [*people, *([found.together] if found.together else [])]
    yield from format_table([_HEADINGS, *map(_row, shown)], align="<>")
    if len(found.voters) > len(people):
        yield f"({len(found.voters) - len(people):,} more people not shown)"
    yield f"Liked better: {escape(found.reference)} : {escape(found.candidate)} : neither."


def _row(voter: VoterScore) -> tuple[str, ...]:
    return (escape(voter.name), *voter.cells(unknown="-"))
