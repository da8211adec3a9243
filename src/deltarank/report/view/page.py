"""What the page shows: plain dataclasses, sorted, labelled and rounded, without markup or charts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deltarank.report.view.activations import ActivationsView
from deltarank.report.view.blind import BlindView
from deltarank.report.view.modules import Module
from deltarank.report.view.outputs import OutputsView
from deltarank.report.view.provenance import LeftOutGroup, Provenance
from deltarank.report.view.table import Table
from deltarank.report.view.text import rounded_share
from deltarank.results import Loss, NoiseShares, Unpaired

MOST_SIDE_BY_SIDE = 6
"""Of more runs, the page shows one at a time, and the tables over runs have a row for each."""

OPENING_TITLES = ("verdict", "rank needed", "not in a LoRA")
"""Of the three lines under a headline."""

Shares = tuple[float | None, ...]
"""The share of energy lost at each rank of the page, 0 to 1; None at ranks that a run did not measure."""


@dataclass(frozen=True)
class PageAxes:
    """What all runs of a page share: its ranks, its modules by name in reading order, and how many runs it has."""

    ranks: tuple[int, ...]
    modules: Mapping[str, Module]
    runs: int = 1

    def lost(self, losses: Iterable[Loss]) -> Shares:
        """The share of energy lost at each rank."""
        by_rank = {loss.rank: loss.energy_lost for loss in losses}
        return tuple(rounded_share(by_rank.get(rank)) for rank in self.ranks)


@dataclass(frozen=True)
class HeatCell:
    """A cell of the heat map: all matrices of one module in one layer, their energies added.

    `members` are the indices of those matrices that have a row on the page, at least one. `unchanged` says that
    finetuning changed nothing here; `reason` says why there is no loss.
    """

    layer: str
    module: Module
    lost: Shares
    members: tuple[int, ...]
    matrices: int
    missing: int
    unchanged: bool
    reason: str | None


@dataclass(frozen=True)
class ModuleRow:
    """A module over all layers of a run, or all modules (`module` is None). `share` is of the whole change."""

    module: Module | None
    share: float | None
    lost: Shares


@dataclass(frozen=True)
class MatrixRow:
    """One matrix. `curve` is (rank, energy lost), `spectrum` (index from 1, singular value), both thinned out."""

    name: str
    layer: str
    shape: tuple[int, ...]
    dtype: str
    reason: str | None
    lost: Shares
    activation_lost: Shares
    share: float | None
    relative_norm: float | None
    frobenius: float | None
    mean_abs: float | None
    max_rank: int
    stable_rank: float | None
    effective_rank: float | None
    signal_rank: int | None
    rounding_floor: float | None
    floor_level: float | None
    noise_edge: float | None
    solver: str | None
    curve: tuple[tuple[int, float], ...]
    spectrum: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RunView:
    """One run. `label` is unique on the page; `losses` and `noise` have an item for each rank of the page.

    `measured_share` is the share of the whole change that the measured matrices hold, and `included` those of them that
    belong to no linear layer, as the end of a sentence. `opening` are the lines under the headline; `sentences` the
    whole verdict.
    """

    label: str
    base: str
    kind: str
    is_unrelated: bool
    opening: tuple[str, ...]
    sentences: tuple[str, ...]
    losses: tuple[Loss | None, ...]
    measured_share: float
    included: str
    noise: tuple[NoiseShares | None, ...]
    matrices_measured: int
    energy: float
    unpaired: Unpaired
    relative_norm: float | None
    rounding_floor: float | None
    modules: tuple[ModuleRow, ...]
    whole: ModuleRow
    cells: tuple[HeatCell, ...]
    matrices: tuple[MatrixRow, ...]
    unlisted: int
    left_out: tuple[LeftOutGroup, ...]
    provenance: Provenance
    energy_table: Table
    activations: ActivationsView | None
    outputs: OutputsView | None
    blind: tuple[BlindView, ...]

    @property
    def opening_lines(self) -> tuple[tuple[str, str], ...]:
        """The lines under the headline, each with its title; empty if the headline says all."""
        return tuple(zip(OPENING_TITLES, self.opening, strict=False))


@dataclass(frozen=True)
class Phrase:
    """A part of a sentence. A model's name is set apart."""

    text: str
    is_name: bool = False


@dataclass(frozen=True)
class PageData:
    """The whole page. `headlines` has a sentence for each rank, `figures` the numbers behind it.

    `weights_headline` is about the weights at the rank that the page opens with, whatever else was measured.

    The tables over runs are None where there is only one run, or where no run has outputs.
    """

    title: str
    runs: tuple[RunView, ...]
    ranks: tuple[int, ...]
    servable: tuple[bool, ...]
    default_index: int
    headlines: tuple[tuple[Phrase, ...], ...]
    weights_headline: tuple[Phrase, ...]
    figures: tuple[str, ...]
    modules: tuple[Module, ...]
    layers: tuple[str, ...]
    weights_of_runs: Table | None
    outputs_of_runs: Table | None
    tool_version: str

    @property
    def default_rank(self) -> int:
        return self.ranks[self.default_index]

    @property
    def shows_one_run(self) -> bool:
        """Whether the runs are too many to stand side by side."""
        return len(self.runs) > MOST_SIDE_BY_SIDE

    @property
    def has_lines(self) -> bool:
        """Whether the verdict of a single run has lines for the first screen."""
        return len(self.runs) == 1 and bool(self.runs[0].opening)

    @property
    def outputs(self) -> list[OutputsView]:
        """Of the runs that have any."""
        return [run.outputs for run in self.runs if run.outputs]
