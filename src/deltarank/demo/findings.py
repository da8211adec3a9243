"""What the demo shows: the article's findings, as a small table and in sentences that hold for these numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from deltarank.demo.recipe import Recipe
from deltarank.results import Loss, MatrixResult, Results, Total, figure, format_table, listing, percent

TITLES = {"lora": "LoRA, merged", "full": "full finetune", "merge": "merge of two"}
LIMIT = 0.1
"""The relative error that the last sentence asks about."""

_EVERYTHING = "all matrices"
_QKV, _O, _MLP = "attention: q, k, v", "attention: o_proj", "MLP"


def findings(runs: Mapping[str, Results], *, width: int = 80, rank: int = Recipe.lora_rank) -> list[str]:
    """Lines for a terminal.

    Args:
        runs: the lab's three comparisons: "lora", "full" and "merge".
        rank: the rank of the table; the lab's LoRA has this rank too.
    """
    parts = {name: _parts(results.matrices) for name, results in runs.items()}
    sentences = [*_sentences(parts, rank), *_verdicts(runs)]
    return [*_table(parts, rank), "", *(line for text in sentences for line in _wrapped(text, width))]


def _parts(matrices: Sequence[MatrixResult]) -> dict[str, Total]:
    groups: dict[str, list[MatrixResult]] = {_EVERYTHING: list(matrices), _MLP: [], _O: [], _QKV: []}
    for matrix in matrices:
        groups[_part_of(matrix.module)].append(matrix)
    return {part: Total.of(rows) for part, rows in groups.items() if rows}


def _part_of(module: str) -> str:
    if module.startswith("mlp."):
        return _MLP
    return _O if module.endswith("o_proj") else _QKV


def _table(parts: Mapping[str, Mapping[str, Total]], rank: int) -> list[str]:
    rows = [
        [part, *(_cell(totals[part].loss(rank)) for totals in parts.values())] for part in (_EVERYTHING, _MLP, _O, _QKV)
    ]
    return finetunes_side_by_side(
        f"What a LoRA of rank {rank} loses of each finetune: cosine distance, and how much of the energy is gone.",
        parts,
        rows,
    )


def finetunes_side_by_side(heading: str, finetunes: Iterable[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table under its heading: one column for each finetune. The first cell of a row is its label."""
    header = ["", *(TITLES[name] for name in finetunes)]
    return [heading, "", *format_table([header, *rows], align="<>", minimum=(20, 19), gap=1, indent=2)]


def _cell(loss: Loss) -> str:
    return f"{figure(loss.cosine_distance)}  {percent(loss.energy_lost):>11}"


def _sentences(parts: Mapping[str, Mapping[str, Total]], rank: int) -> Iterator[str]:
    lora, full, merge = (parts[name] for name in ("lora", "full", "merge"))
    yield (
        f"The baseline is a LoRA of rank {rank}, merged: rank {rank} loses {_gone(lora, rank)} of its change. The full "
        f"finetune read the same pages as often and loses {_gone(full, rank)}; the merge loses {_gone(merge, rank)}."
    )
    by_loss = sorted((_MLP, _O, _QKV), key=lambda part: -full[part].loss(rank).energy_lost)
    told = [f"{part.removeprefix('attention: ')} {_gone(full, rank, part)}" for part in by_loss]
    agrees = " That is the article's picture: MLP first, and of the attention o_proj." * (by_loss == [_MLP, _O, _QKV])
    yield f"What the full finetune loses, by part: {listing(told)}.{agrees}"
    yield (
        f"To come within {percent(LIMIT)} of what finetuning changed (relative error), the LoRA takes "
        f"{_needed(lora)}, the full finetune {_needed(full)}, the merge {_needed(merge)}."
    )


def _gone(totals: Mapping[str, Total], rank: int, part: str = _EVERYTHING) -> str:
    return percent(totals[part].loss(rank).energy_lost)


def _needed(totals: Mapping[str, Total]) -> str:
    losses = sorted(totals[_EVERYTHING].losses, key=lambda loss: loss.rank)
    for loss in losses:
        if loss.relative_error <= LIMIT:
            return f"rank {loss.rank}"
    return f"more than rank {losses[-1].rank}"


def _verdicts(runs: Mapping[str, Results]) -> Iterator[str]:
    yield "What deltarank, told nothing but the weights, takes each for:"
    for name, results in runs.items():
        # The first sentence is about a rank; what kind of delta it is comes second, if there is anything to say.
        yield f"- {TITLES[name]}: {results.verdict.sentences[:2][-1]}"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  " if text.startswith("- ") else "", break_on_hyphens=False)
