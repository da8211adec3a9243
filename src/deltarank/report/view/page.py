"""What the page shows: plain dataclasses, sorted, labelled and rounded, with no markup and no chart in them."""

from __future__ import annotations

from dataclasses import dataclass

from deltarank.report.view.modules import Module
from deltarank.report.view.outputs_page import OutputsView
from deltarank.results import Loss

Shares = tuple[float | None, ...]
"""The energy lost at each rank of the page, 0 to 1; None where a run did not measure that rank."""


@dataclass(frozen=True)
class Cell:
    """A square of the heat map: all matrices of one module in one layer, taken as one.

    `matrices` counts them; `members` are the lines on the page of those that have one, at least one of them. `same`
    says that finetuning changed nothing here, so that "kept" would be an empty word.
    """

    layer: str
    module: int
    lost: Shares
    share: float | None
    members: tuple[int, ...]
    matrices: int
    missing: int
    same: bool
    reason: str | None


@dataclass(frozen=True)
class ModuleRow:
    """A module of a run over all layers. `share` is its part of the whole change."""

    module: int
    matrices: int
    share: float | None
    lost: Shares


@dataclass(frozen=True)
class MatrixRow:
    """One matrix. `curve` is (rank, energy lost), `spectrum` (index from 1, singular value), both thinned out."""

    name: str
    layer: str
    module: int
    shape: tuple[int, ...]
    dtype: str
    reason: str | None
    lost: Shares
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
class LeftOutGroup:
    """Tensors that were left out for one reason. `share` is None where none of them was read."""

    sentence: str
    count: int
    share: float | None
    unread: int
    names: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class AuditLine:
    name: str
    rank: int
    measured: float
    truth: float
    deviation: float


@dataclass(frozen=True)
class Origin:
    """How a run was measured, in words."""

    facts: tuple[tuple[str, str], ...]
    command: str | None
    files: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    notes: tuple[str, ...]
    audit: tuple[AuditLine, ...]


@dataclass(frozen=True)
class RunView:
    """One run. `label` is unique on the page; `losses` runs along the ranks of the page."""

    label: str
    base: str
    kind: str
    sentences: tuple[str, ...]
    losses: tuple[Loss | None, ...]
    matrices_measured: int
    energy: float
    relative_norm: float | None
    rounding_floor: float | None
    modules: tuple[ModuleRow, ...]
    cells: tuple[Cell, ...]
    matrices: tuple[MatrixRow, ...]
    unlisted: int
    left_out: tuple[LeftOutGroup, ...]
    origin: Origin
    outputs: OutputsView | None


@dataclass(frozen=True)
class Phrase:
    """A piece of a sentence; a model's name is set apart."""

    text: str
    name: bool = False


@dataclass(frozen=True)
class PageData:
    """The whole page. `headlines` has one sentence for each rank, `figures` the numbers behind it."""

    title: str
    runs: tuple[RunView, ...]
    ranks: tuple[int, ...]
    legal: tuple[bool, ...]
    default: int
    headlines: tuple[tuple[Phrase, ...], ...]
    figures: tuple[str, ...]
    modules: tuple[Module, ...]
    layers: tuple[str, ...]
    tool_version: str

    @property
    def default_rank(self) -> int:
        return self.ranks[self.default]

    @property
    def spoken(self) -> bool:
        """Whether any run looked at outputs."""
        return any(run.outputs for run in self.runs)
