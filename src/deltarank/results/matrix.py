"""The measurements of one matrix, and the reasons why tensors were not measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self

from msgspec import Meta

from deltarank.results.codec import Count, Energy, Norm, Rank, Share, SignedShare, from_record, unreadable_record
from deltarank.results.formatting import figure, percent
from deltarank.results.notebook_parts import sentences_html, table_html


class Outcome(StrEnum):
    """What happened to a tensor. `sentence` is the text that a user reads."""

    MEASURED = "measured"
    IDENTICAL = "identical"
    NOT_FINITE = "not_finite"
    UNREADABLE = "unreadable"
    FAILED = "failed"
    NOT_A_MATRIX = "not_a_matrix"
    EMBEDDING = "embedding"
    EXCLUDED = "excluded"
    SHAPE_DIFFERS = "shape_differs"
    ONLY_IN_BASE = "only_in_base"
    ONLY_IN_FINETUNE = "only_in_finetune"
    TIED = "tied"
    EXTRA_ROWS = "extra_rows"
    OTHER_TOKENS = "other_tokens"
    NOT_FLOATING = "not_floating"
    DUPLICATE = "duplicate"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES: dict[Outcome, str] = {
    Outcome.MEASURED: "measured",
    Outcome.IDENTICAL: "identical in both checkpoints",
    Outcome.NOT_FINITE: "NaN or Inf, so the loss is undefined",
    Outcome.UNREADABLE: "could not be read",
    Outcome.FAILED: "could not be measured",
    Outcome.NOT_A_MATRIX: "norms, biases and other tensors outside linear layers, which a LoRA cannot represent",
    Outcome.EMBEDDING: "embeddings and the output head, measured only if --include names them",
    Outcome.EXCLUDED: "excluded by --include or --exclude, and not read",
    Outcome.SHAPE_DIFFERS: "the shapes differ, so there is no delta",
    Outcome.ONLY_IN_BASE: "only in the base",
    Outcome.ONLY_IN_FINETUNE: "only in the finetune",
    Outcome.TIED: "tied to the embedding in one checkpoint, stored separately in the other",
    Outcome.EXTRA_ROWS: "rows of tokens that only one vocabulary has",
    Outcome.OTHER_TOKENS: "vocabularies of unlike lengths and order: row by row they differ as unrelated tokens do",
    Outcome.NOT_FLOATING: "not stored as floating-point numbers",
    Outcome.DUPLICATE: "another copy of a tensor that was compared",
}


TIED_EMBEDDING = "the embedding, which is the output head, too; measured only if --include names it"
"""The `reason` of a skipped embedding that both checkpoints tie to the output head."""


@dataclass(frozen=True)
class Loss:
    """What the rank-r delta D_r loses of the delta D. All four figures follow from `energy_kept`.

    rank             r
    mse              ||D - D_r||^2 / (rows * columns)
    cosine_distance  1 - cos(D, D_r) = 1 - sqrt(energy_kept)
    relative_error   ||D - D_r|| / ||D|| = sqrt(1 - energy_kept)
    energy_kept      ||D_r||^2 / ||D||^2 (Eckart and Young 1936)
    """

    rank: Rank
    mse: Annotated[float, Meta(ge=0)]
    cosine_distance: Share
    relative_error: Share
    energy_kept: Share

    @classmethod
    def from_energy(cls, rank: int, *, lost: float, total: float, entries: int) -> Self:
        """From the energy lost, ||D - D_r||^2, which does not suffer from cancellation where little is lost.

        Args:
            lost: ||D - D_r||^2.
            total: ||D||^2.
            entries: rows * columns.
        """
        if total <= 0:
            return cls(rank, 0.0, 0.0, 0.0, 1.0)
        share = min(max(lost / total, 0.0), 1.0)
        kept = 1.0 - share
        # 1 - sqrt(1 - x), written so that a loss of 1e-12 keeps its digits.
        return cls(rank, lost / entries, share / (1.0 + math.sqrt(kept)), math.sqrt(share), kept)

    @property
    def energy_lost(self) -> float:
        """1 - energy_kept, computed from `relative_error` to avoid cancellation."""
        return self.relative_error**2

    def _repr_html_(self) -> str:
        return losses_html([self])


@dataclass(frozen=True)
class WrittenLoss(Loss):
    """What any L of rank r, such as the B A of an adapter, loses of the delta D.

    rank             r
    mse              ||D - L||^2 / (rows * columns)
    cosine_distance  1 - cos(D, L): over 1 where L points away from D
    relative_error   ||D - L|| / ||D||: over 1 where L leads away from W0 + D
    energy_kept      1 - ||D - L||^2 / ||D||^2: negative there
    """

    cosine_distance: Annotated[float, Meta(ge=0, le=2)]
    relative_error: Norm
    energy_kept: SignedShare

    @classmethod
    def of_fit(cls, rank: int, *, lost: float, total: float, cosine: float, entries: int) -> Self:
        """
        Args:
            lost: ||D - L||^2.
            total: ||D||^2, which is not 0.
            cosine: cos(D, L); 0 if L is.
            entries: rows * columns.
        """
        distance = min(max(1.0 - cosine, 0.0), 2.0)
        return cls(rank, lost / entries, distance, math.sqrt(lost / total), 1.0 - lost / total)


@dataclass(frozen=True)
class ActivationLoss:
    """What the rank-r deltas lose of the products D x, where x are the matrix's inputs while the finetune reads a text.

    tokens  how many inputs there were; of an expert, the tokens that were routed to it
    energy  E||D x||^2
    lost    E||(D - D_r) x||^2 / E||D x||^2 at each rank of the run; 0 if there is nothing to lose, because D is zero or
            no token reached the matrix
    """

    tokens: Count
    energy: Energy
    lost: tuple[Share, ...]

    @classmethod
    def from_sums(cls, tokens: int, energy: float, errors: Sequence[float]) -> Self:
        """From sums over the tokens: of ||D x||^2, and of ||(D - D_r) x||^2 at each rank."""
        lost = tuple(min(error / energy, 1.0) if energy > 0 else 0.0 for error in errors)
        return cls(tokens, energy / tokens if tokens else 0.0, lost)


@dataclass(frozen=True)
class MatrixResult:
    """One weight matrix W, its base W0 and their difference D = W - W0. Norms are Frobenius norms.

    layer            the layer's number; None outside of layers
    module           "mlp.down_proj"
    dtype            what the weights are stored in
    max_rank         the smaller side of D
    relative_norm    ||D|| / ||W0||
    mean_abs         mean of |D|
    frobenius        ||D||; `base_frobenius` is ||W0||
    stable_rank      ||D||^2 / s1^2
    effective_rank   exp of the entropy of the normalised squared singular values
    signal_rank      number of singular values above the noise edge (Marchenko and Pastur 1967)
    signal_share     share of ||D||^2 in these singular values
    rounding_floor   share of ||D||^2 that rounding to the storage dtype alone explains
    base_rounding    share of ||D||^2 that the rounding of a quantised base explains, where D contains that; else None
    base_noise_edge  the noise edge with that rounding
    singular_values  the leading ones, in descending order
    losses           at the ranks of the run
    curve            (rank, energy kept), for a chart
    activation_loss  if the finetune read a calibration text, and the matrix took part
    reason           why there are no losses

    Figures that the solver cannot know are None: a top-r solver does not see the tail, so `effective_rank` is None, and
    `signal_rank` and `signal_share` are None if all values that it found are above the noise edge.
    """

    name: str
    layer: Count | None
    module: str
    shape: tuple[Count, ...]
    outcome: Outcome
    dtype: str
    max_rank: Count
    relative_norm: float | None = None
    mean_abs: float | None = None
    frobenius: Norm | None = None
    base_frobenius: Norm | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    signal_rank: Count | None = None
    signal_share: Share | None = None
    rounding_floor: Norm | None = None
    noise_edge: float | None = None
    base_rounding: Norm | None = None
    base_noise_edge: float | None = None
    solver: str | None = None
    singular_values: tuple[Norm, ...] = ()
    losses: tuple[Loss, ...] = ()
    curve: tuple[tuple[Count, float], ...] = ()
    activation_loss: ActivationLoss | None = None
    reason: str | None = None
    seconds: float | None = None

    @property
    def entries(self) -> int:
        return math.prod(self.shape)

    @property
    def energy(self) -> float:
        """||D||^2."""
        return (self.frobenius or 0.0) ** 2

    @property
    def base_energy(self) -> float:
        """||W0||^2."""
        return (self.base_frobenius or 0.0) ** 2

    @property
    def has_losses(self) -> bool:
        return self.outcome in (Outcome.MEASURED, Outcome.IDENTICAL)

    def loss(self, rank: int) -> Loss:
        """Raises KeyError if this rank was not measured."""
        return loss_at(self.losses, rank)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], ranks: Sequence[int]) -> Self:
        """A matrix of a run at these ranks, from a line of its folder.

        Raises:
            ResultsError: (slug "results-unreadable") it is none.
        """
        matrix = from_record(cls, record)
        try:
            matrix.check(ranks)
        except ValueError as error:
            raise unreadable_record(cls, error) from None
        return matrix

    def _repr_html_(self) -> str:
        measured = f"change / weights: {percent(self.relative_norm)}" if self.losses else self.outcome.sentence
        size = " x ".join(map(str, self.shape))
        return sentences_html(
            [f"{self.name}, {size}", f"{measured}."], *([losses_html(self.losses)] * bool(self.losses))
        )

    def check(self, ranks: Sequence[int]) -> None:
        """Raises ValueError unless it is two-dimensional and has its losses at exactly these ranks."""
        if len(self.shape) != 2:
            raise ValueError(f"{self.name[:100]!r} has {len(self.shape)} dimensions, not two")
        if self.has_losses and [loss.rank for loss in self.losses] != list(ranks):
            raise ValueError(f"the losses of {self.name[:100]!r} are not at the ranks of the run")
        if self.activation_loss is not None and len(self.activation_loss.lost) != len(ranks):
            raise ValueError(f"the activation-weighted losses of {self.name[:100]!r} are not at the ranks of the run")


def losses_html(losses: Iterable[Loss]) -> str:
    """A table with a row for each rank, for a notebook."""
    rows = [
        (str(loss.rank), percent(loss.energy_kept), figure(loss.relative_error), figure(loss.cosine_distance))
        for loss in losses
    ]
    return table_html(("rank", "energy kept", "relative error", "cosine distance"), rows)


def loss_at(losses: Iterable[Loss], rank: int) -> Loss:
    """Raises KeyError if this rank is not among them."""
    known = {loss.rank: loss for loss in losses}
    if rank not in known:
        raise KeyError(f"rank {rank} was not measured; measured: {list(known)}")
    return known[rank]


@dataclass(frozen=True)
class Skipped:
    """A tensor that was not measured.

    energy           ||D||^2 of the part that both checkpoints have; None if it was not read
    share            `energy` as a share of the change in all that both checkpoints have; None if it was not read
    """

    name: str
    outcome: Outcome
    reason: str
    shape: tuple[Count, ...] = ()
    energy: float | None = None
    share: float | None = None
