"""What an adapter does to a base, beside what finetuning did: a row for each tensor, and sums of rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Self

from msgspec import Meta

from deltarank.results.codec import Count, Energy, StoredResult, decode, to_plain
from deltarank.results.formatting import escape, percent
from deltarank.results.live_check import LiveCheck
from deltarank.results.matrix import Outcome
from deltarank.results.notebook_parts import sentences_html, table_html
from deltarank.results.reference import Reference

FORMAT_VERSION = 1
# 1: the first format (2026-11).


class TensorChange(StrEnum):
    """How an adapter changes a tensor."""

    LORA = "lora"
    WHOLE = "whole"
    NONE = "none"


@dataclass(frozen=True)
class FitEnergies:
    """How well what an adapter adds, L, fits D = W - W0, over one tensor or several.

    energy           ||D||^2
    lost             ||D - L||^2
    best             the least ||D - X||^2 over all X of the adapter's rank; None if it was not computed
    inner, added     <D, L> and ||L||^2
    rounded_lost     ||W - R||^2, where R is W0 + L rounded to the dtype of W: what rounding does not explain of `lost`
    rounded_inner    <R - W0, L>, which is ||L||^2 where no change is lost in the rounding
    """

    energy: Energy = 0.0
    lost: Energy = 0.0
    best: Energy | None = None
    inner: Annotated[float, Meta(ge=-1e300, le=1e300)] = 0.0
    added: Energy = 0.0
    rounded_lost: Energy | None = None
    rounded_inner: Annotated[float, Meta(ge=-1e300, le=1e300)] | None = None

    @classmethod
    def of(cls, rows: Iterable[FitEnergies]) -> Self:
        """The sums; `best` is None if it is None in any row."""
        rows = list(rows)
        bests = [row.best for row in rows if row.best is not None]
        return cls(
            energy=math.fsum(row.energy for row in rows),
            lost=math.fsum(row.lost for row in rows),
            best=math.fsum(bests) if len(bests) == len(rows) and rows else None,
            inner=math.fsum(row.inner for row in rows),
            added=math.fsum(row.added for row in rows),
            rounded_lost=_sum_of_known(row.rounded_lost for row in rows),
            rounded_inner=_sum_of_known(row.rounded_inner for row in rows),
        )

    @property
    def share_lost(self) -> float | None:
        """||D - L||^2 / ||D||^2; over 1 where the adapter moves the base away from the finetune."""
        return self.lost / self.energy if self.energy > 0 else None

    @property
    def share_best(self) -> float | None:
        """`share_lost` of the best LoRA of the same ranks."""
        return self.best / self.energy if self.energy > 0 and self.best is not None else None

    @property
    def excess(self) -> float | None:
        """`share_lost` - `share_best`: what the best LoRA of the same ranks would not have lost."""
        if self.share_lost is None or self.share_best is None:
            return None
        return max(self.share_lost - self.share_best, 0.0)

    @property
    def scaled_by(self) -> float | None:
        """By what L was multiplied, beside the multiple that fits D best; 1 if rightly scaled.

        Whichever is nearer to 1, and 1 if they are on both sides of it:

        ||L||^2 / <D, L>       an L that was extracted from D
        <R - W0, L> / <D, L>   an L that was merged into W: entries of L that are smaller than half a unit in the last
                               place leave no trace in D
        """
        products = [self.added] if self.rounded_inner is None else [self.added, self.rounded_inner]
        if self.inner <= 0 or min(products) <= 0:
            return None
        return min(max(1.0, min(products) / self.inner), max(products) / self.inner)

    @property
    def cosine(self) -> float | None:
        """<D, L> / (||D|| ||L||)."""
        if self.energy <= 0 or self.added <= 0:
            return None
        return self.inner / math.sqrt(self.energy) / math.sqrt(self.added)

    @property
    def explained(self) -> float | None:
        """The share of the energy that the best multiple of L keeps; negative if that multiple is."""
        cosine = self.cosine
        return None if cosine is None else math.copysign(cosine * cosine, cosine)

    def to_plain(self) -> dict[str, Any]:
        return {
            **to_plain(self),
            "share_lost": self.share_lost,
            "share_best": self.share_best,
            "excess": self.excess,
            "scaled_by": self.scaled_by,
            "cosine": self.cosine,
        }


def _sum_of_known(values: Iterable[float | None]) -> float | None:
    """None if one of them is unknown, or there is none."""
    known = list(values)
    return math.fsum(x for x in known if x is not None) if known and None not in known else None


@dataclass(frozen=True)
class TensorFit:
    """One tensor that both checkpoints have.

    rank             of the LoRA on it, as stored; 0 without one
    scale            what B A is multiplied by; None without a LoRA
    """

    name: str
    layer: Count | None
    module: str
    shape: tuple[Count, ...]
    outcome: Outcome
    change: TensorChange
    rank: Count = 0
    scale: float | None = None
    energies: FitEnergies = field(default_factory=FitEnergies)
    reason: str | None = None

    @property
    def is_compared(self) -> bool:
        return self.outcome in (Outcome.MEASURED, Outcome.IDENTICAL)

    @property
    def is_touched(self) -> bool:
        return self.change is not TensorChange.NONE

    def to_plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = to_plain(self)
        del plain["energies"]
        return plain | self.energies.to_plain()


@dataclass(frozen=True)
class IgnoredTensor:
    """A tensor of the adapter's file that changes nothing, and why."""

    name: str
    reason: str


class FitKind(StrEnum):
    """What kind of fit this is."""

    OPTIMAL = "optimal"
    SHORT = "short"
    CALIBRATED = "calibrated"
    MISSCALED = "misscaled"
    STRANGER = "stranger"
    BROKEN = "broken"
    EMPTY = "empty"
    UNLOADED = "unloaded"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Verification(StoredResult):
    """What an adapter does to a base, beside what finetuning did. `sentences[0]` is the headline.

    server           whose semantics it was applied by; None for PEFT's
    unused           what of its file changes nothing
    live             whether a running server applies it, if one was asked
    """

    description = "what `deltarank verify --json` prints"
    cure = "Run `deltarank verify` again."
    readable_format = FORMAT_VERSION

    base: Reference
    finetune: Reference
    adapter: Reference
    server: str | None
    tensors: tuple[TensorFit, ...]
    unused: tuple[IgnoredTensor, ...]
    notes: tuple[str, ...]
    kind: FitKind
    sentences: tuple[str, ...]
    tool_version: str
    created: str
    format_version: Count = FORMAT_VERSION
    live: LiveCheck | None = None

    def __repr__(self) -> str:
        return f"<Verification {escape(self.adapter.short_name)}: {self.kind.value}; {escape(self.sentences[0])}>"

    def _repr_html_(self) -> str:
        rows = [
            (name, percent(each.share_lost, unknown="–"), percent(each.share_best, unknown="–"))
            for name, each in self.by_module.items()
        ]
        return sentences_html(self.sentences, table_html(("module", "lost", "lost by the best LoRA"), rows))

    @cached_property
    def whole(self) -> FitEnergies:
        """All tensors that both checkpoints have, whether the adapter changes them or not."""
        return compared_energies(self.tensors)

    @cached_property
    def touched(self) -> FitEnergies:
        """The matrices that have a LoRA."""
        return touched_energies(self.tensors)

    @cached_property
    def by_module(self) -> Mapping[str, FitEnergies]:
        """The matrices that have a LoRA, by module."""
        modules: dict[str, list[FitEnergies]] = {}
        for row in self.tensors:
            if row.is_compared and row.change is TensorChange.LORA:
                modules.setdefault(row.module, []).append(row.energies)
        return {name: FitEnergies.of(rows) for name, rows in modules.items()}

    def to_plain(self) -> dict[str, Any]:
        return {
            "format_version": self.format_version,
            "tool_version": self.tool_version,
            "created": self.created,
            "base": to_plain(self.base),
            "finetune": to_plain(self.finetune),
            "adapter": to_plain(self.adapter),
            "server": self.server,
            "kind": self.kind.value,
            "sentences": list(self.sentences),
            "whole": self.whole.to_plain(),
            "touched": self.touched.to_plain(),
            "tensors": [row.to_plain() for row in self.tensors],
            "unused": to_plain(self.unused),
            "notes": list(self.notes),
            "live": to_plain(self.live),
        }

    @classmethod
    def _decoded(cls, text: str | bytes) -> Self:
        """The row of a tensor contains its energies beside its other fields."""
        verification, rows = decode(cls, text), decode(_EnergyRows, text).tensors
        tensors = tuple(
            replace(tensor, energies=energies) for tensor, energies in zip(verification.tensors, rows, strict=True)
        )
        verification = replace(verification, tensors=tensors)
        for energies in (verification.whole, verification.touched, *rows):
            if not all(value is None or math.isfinite(value) for value in energies.to_plain().values()):
                raise ValueError("the energies in `$.tensors` have no finite ratios")
        return verification


@dataclass(frozen=True)
class _EnergyRows:
    tensors: tuple[FitEnergies, ...]


def compared_energies(rows: Iterable[TensorFit]) -> FitEnergies:
    return FitEnergies.of(row.energies for row in rows if row.is_compared)


def touched_energies(rows: Iterable[TensorFit]) -> FitEnergies:
    return FitEnergies.of(row.energies for row in rows if row.is_compared and row.change is TensorChange.LORA)
