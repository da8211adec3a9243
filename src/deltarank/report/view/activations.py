"""What the page and the terminal show of the activation-weighted losses, beside the losses of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deltarank.report.view.modules import Module
from deltarank.report.view.table import Table, TableRow
from deltarank.report.view.text import label, rounded_share, terse_kept, terse_percent
from deltarank.results import ActivationLoss, Results, count, percent

ALL_LAYERS = "all matrices"


@dataclass(frozen=True)
class ActivationsView:
    """`lost` has an item for each rank of the page: the share of E||D x||^2 lost; None where it was not measured."""

    sentences: tuple[str, ...]
    lost: tuple[float | None, ...]
    table: Table
    text: str


def activations_view(run: Results, ranks: Sequence[int], modules: Sequence[Module]) -> ActivationsView | None:
    """The losses of one run at the ranks of the page, by module; None without a calibration text."""
    whole, text = run.totals.whole.activation_loss, run.calibration_text
    if whole is None or text is None:
        return None
    by_module = {name: total.activation_loss for name, total in run.totals.by_module.items()}
    rows = [_row(module.label, loss, whole, run, ranks) for module in modules if (loss := by_module.get(module.name))]
    read = f"{label(text.name)}, {count(text.tokens, 'token')}"
    return ActivationsView(
        sentences=tuple(_sentence(run, whole, rank, read) for rank in ranks),
        lost=_lost(whole, run, ranks),
        table=Table(
            ("module", "of the outputs", *map(str, ranks)),
            ((*rows, _row(ALL_LAYERS, whole, whole, run, ranks)),),
            f"Text: {read}. Of the outputs: the share of what the change adds to the outputs of all layers.",
        ),
        text=read,
    )


def activation_lost(loss: ActivationLoss | None, run: Results, ranks: Sequence[int]) -> tuple[float | None, ...]:
    """The shares that one matrix loses at the ranks of the page."""
    return tuple(None for _ in ranks) if loss is None else _lost(loss, run, ranks)


def _lost(loss: ActivationLoss, run: Results, ranks: Sequence[int]) -> tuple[float | None, ...]:
    by_rank = dict(zip(run.ranks, loss.lost, strict=True))
    return tuple(rounded_share(by_rank.get(rank)) for rank in ranks)


def _row(name: str, loss: ActivationLoss, whole: ActivationLoss, run: Results, ranks: Sequence[int]) -> TableRow:
    share = loss.energy * loss.tokens / (whole.energy * whole.tokens) if whole.energy else 0.0
    return TableRow(name, (terse_percent(share), *(terse_kept(lost) for lost in _lost(loss, run, ranks))))


def _sentence(run: Results, whole: ActivationLoss, rank: int, read: str) -> str:
    """ "While the finetune reads notes.txt, 4,096 tokens, rank 8 loses 4.7 % of what the change adds to ..." """
    if rank not in run.ranks:
        return ""
    lost, of_weights = whole.lost[run.ranks.index(rank)], run.totals.whole.loss(rank).energy_lost
    return (
        f"While the finetune reads {read}, rank {rank} loses {percent(lost)} of what the change adds to the outputs of "
        f"the layers, E||(D - D_r) x||^2 / E||D x||^2; of the change in the weights it loses {percent(of_weights)}."
    )
