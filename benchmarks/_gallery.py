"""The page of the docs that shows what deltarank says of a real language model: tables, pictures, answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import _report
from deltarank.report import terminal_summary
from deltarank.results import CandidateResult, Outputs, Results, figure, percent

PICTURES = ("loss-by-rank.png", "kld-by-rank.png")
PROMPTS_SHOWN = 4
ANSWERS_SHOWN = ("finetune", "rank 8", "rank 64", "base")
LONGEST_SHOWN = 360

HOW_TO_READ = """\
The two tables measure different things. At low ranks, `full` and `merge` lose much of the change in the weights and
little of the behaviour. That is not so for every finetune: the demo's full finetune loses 38 % of the change at
rank 8, and 42 % of the behaviour ([tutorial](tutorial.md)).

For the merged LoRA, a sentence below states the storage rounding as a share of the whole change, estimated by a
[formula](how-it-works.md#the-rounding-floor). What the table says is lost at the LoRA's own rank can be less: the
low-rank part also holds some of the rounding, and the formula is too large where a change is smaller than the
rounding.

q8_0 and q4_0 are the finetune itself, quantised to about 8 and 4 bits for each weight. Below 0 %, a candidate is
farther from the finetune than the base is."""


def write(docs: Path, runs: Sequence[Results], descriptions: dict[str, str], notes: Iterable[str]) -> Path:
    """Writes DOCS/smollm2.md and copies the pictures of the runs' common report beside those of the docs."""
    sections = [
        "# A real language model",
        _introduction(descriptions),
        "## How near to the finetune",
        behaviour_table(runs),
        "![KLD by rank](images/smollm2-kld-by-rank.png)",
        "## How much of the change in the weights",
        weights_table(runs),
        "![Energy lost by rank](images/smollm2-loss-by-rank.png)",
        "## How to read the tables",
        HOW_TO_READ,
        "## What they write",
        *(answers(run) for run in runs),
        "## How this was made",
        *notes,
    ]
    page = docs / "smollm2.md"
    page.write_text("\n\n".join(sections) + "\n")
    return page


def copy_pictures(report: Path, docs: Path) -> None:
    for picture in PICTURES:
        shutil.copyfile(report / picture, docs / "images" / f"smollm2-{picture}")


def behaviour_table(runs: Sequence[Results]) -> str:
    """Mean KLD of every candidate on the finetune's own answers, and how much it keeps."""
    measured = [(run.finetune.short_name, run.outputs) for run in runs if run.outputs]
    names = list(dict.fromkeys(candidate.name for _, outputs in measured for candidate in outputs.candidates))
    rows = [[name, *(_distance(outputs, name) for _, outputs in measured)] for name in names]
    return _report.table(["KLD in nats per token (kept)", *(name for name, _ in measured)], rows)


def weights_table(runs: Sequence[Results]) -> str:
    """Energy kept at every rank, of all matrices that a LoRA has factors for."""
    ranks = [loss.rank for loss in runs[0].totals.whole.losses]
    rows = [[str(rank), *(percent(run.totals.whole.loss(rank).energy_kept) for run in runs)] for rank in ranks]
    return _report.table(["rank", *(run.finetune.short_name for run in runs)], rows)


def answers(run: Results) -> str:
    """The first answers to a few prompts, model by model."""
    if not run.outputs:
        return ""
    shown = run.outputs.samples[:: max(1, len(run.outputs.samples) // PROMPTS_SHOWN)][:PROMPTS_SHOWN]
    parts = [f"### {run.finetune.short_name}", *_opening(run)]
    for sample in shown:
        rows = [[name, _cell(sample.answers[name])] for name in ANSWERS_SHOWN if name in sample.answers]
        parts.append(f"**{_cell(sample.prompt)}**\n\n" + _left_table(rows))
    return "\n\n".join(parts)


def _opening(run: Results) -> list[str]:
    """What a terminal says first: the headline, the verdict, the rank needed, what a LoRA cannot carry."""
    headline, opening = terminal_summary(run, width=10_000).split("\n\n")[:2]
    return [headline, opening.replace("\n", " ")]


def _introduction(descriptions: dict[str, str]) -> str:
    listed = "\n".join(f"- **{name}**: {text}" for name, text in descriptions.items())
    return (
        "Base: SmolLM2-135M-Instruct. `benchmarks/real_language_model.py` makes these finetunes of it, runs "
        f"deltarank on each, and writes this page.\n\n{listed}"
    )


def _distance(outputs: Outputs, name: str) -> str:
    found = next((each for each in outputs.candidates if each.name == name), None)
    return "" if found is None else _own_answers(outputs, found)


def _own_answers(outputs: Outputs, candidate: CandidateResult) -> str:
    own = next((text.name for text in outputs.texts if text.own), None)
    logits = next((each for each in candidate.logits if each.text == own), None)
    if logits is None:
        return ""
    kept = "" if logits.kept is None else f" ({percent(logits.kept.value)})"
    return f"{figure(logits.kld.mean)}{kept}"


def _cell(text: str) -> str:
    """On one line, without anything that markdown would read as its own."""
    line = " ".join(text.split())
    cut = line if len(line) <= LONGEST_SHOWN else line[:LONGEST_SHOWN].rsplit(" ", 1)[0] + " …"
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#" else letter for letter in cut)


def _left_table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [["model", "answer"], ["---", "---"], *rows])
