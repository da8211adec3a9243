"""The loss budget: where the whole change ||W - W0||^2 went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from deltarank.results import (
    NONE_UNPAIRED,
    Count,
    Energy,
    LeftOutShare,
    RankLimit,
    Share,
    SignedShare,
    Unpaired,
    count,
    figure,
    listing,
    percent,
    percents,
    to_plain,
)
from deltarank.servers import Server
from deltarank.tensor_names import kind_in_words

IS_HEAD_TOO = "tied with the output head"
"""How the reason begins that leaves out an embedding whose matrix is the head's, too."""

IF_INCLUDED = "extracted if included by name"
"""How the reason ends that leaves a tensor out unless `--include` names it."""


@dataclass(frozen=True)
class MatrixEnergies:
    """The energies of one extracted matrix.

    total       ||D||^2
    truncated   ||D - D_r||^2, what the rank loses
    lost        ||D - B A||^2 with B and A as written, what rank and rounding lose
    """

    total: float
    truncated: float
    lost: float


class OmittedTensor(NamedTuple):
    """A tensor that the adapter does not contain, and ||D||^2 of it; None if it is unknown."""

    name: str
    kind: str
    reason: str
    energy: float | None


@dataclass(frozen=True)
class LeftOut:
    """A tensor that the adapter does not contain, as the budget states it.

    kind      "norm", "lm_head", ...; "excluded" and the like where the server is not the reason
    share     of the whole change; None if its change is unknown (not read, or in one checkpoint only)
    """

    name: str
    kind: str
    reason: str
    share: float | None


@dataclass(frozen=True)
class KindShare:
    """What is left out of one kind of tensors, such as norms: how many tensors, and their share of the change."""

    kind: str
    tensors: Count
    share: Share


@dataclass(frozen=True)
class Budget:
    """Shares of ||W - W0||^2, summed over all that was read, that add up to 1.

    kept         ||D||^2 - ||D - B A||^2 of the matrices that were extracted, and tensors that were stored whole
    truncated    ||D - D_r||^2: lost to the rank
    rounded      ||D - B A||^2 - ||D - D_r||^2: lost to the rounding of A and B
    left_out     in tensors that the adapter does not contain, which `tensors` lists
    fitted       given up by factors that are fitted to the finetune's predictions and not to its weights
    energy       the whole change, ||W - W0||^2
    unpaired     matrices without a counterpart and tensors that could not be measured, which no share covers
    """

    kept: SignedShare
    truncated: SignedShare
    rounded: SignedShare
    left_out: SignedShare
    tensors: tuple[LeftOut, ...] = ()
    energy: Energy = 0.0
    unpaired: Unpaired = NONE_UNPAIRED
    fitted: SignedShare = 0.0

    def calibrated_to(self, energy_kept: float) -> Self:
        """The budget of an adapter of the same form whose factors keep ||D||^2 - ||D - B A||^2 = `energy_kept`."""
        kept = energy_kept / self.energy if self.energy > 0 else self.kept
        return replace(self, kept=kept, fitted=self.kept - kept)

    @classmethod
    def of(
        cls,
        matrices: Sequence[MatrixEnergies],
        stored_whole: Sequence[float],
        omitted: Sequence[OmittedTensor],
    ) -> Self:
        """The budget from energies: of extracted matrices, of tensors stored whole, and of omitted ones."""
        absent = math.fsum(tensor.energy or 0.0 for tensor in omitted)
        whole = math.fsum([*(matrix.total for matrix in matrices), *stored_whole, absent])
        if whole <= 0:
            return cls(1.0, 0.0, 0.0, 0.0, tuple(_left_out(tensor, 1.0) for tensor in omitted))
        tensors = (_left_out(tensor, whole) for tensor in omitted)
        return cls(
            kept=math.fsum([*(matrix.total - matrix.lost for matrix in matrices), *stored_whole]) / whole,
            truncated=math.fsum(matrix.truncated for matrix in matrices) / whole,
            rounded=math.fsum(matrix.lost - matrix.truncated for matrix in matrices) / whole,
            left_out=absent / whole,
            tensors=tuple(sorted(tensors, key=lambda t: (-(t.share or 0.0), t.share is None, t.name))),
            energy=whole,
        )

    def by_kind(self) -> dict[str, tuple[int, float]]:
        """The number of changed tensors and the share of each kind, the largest share first."""
        kinds: dict[str, list[float]] = {}
        for tensor in self.tensors:
            if tensor.share:
                kinds.setdefault(tensor.kind, []).append(tensor.share)
        sums = {kind: (len(shares), math.fsum(shares)) for kind, shares in kinds.items()}
        return dict(sorted(sums.items(), key=lambda item: -item[1][1]))

    def sentence(self, server: Server, rank: int) -> str:
        """As in "keeps 71 % of the change in the weights; 29 % is in 81 tensors that vLLM cannot load (norms)"."""
        if self.energy == 0 and self.kept == 1:
            if not self.unpaired.is_complete:
                return f"changes nothing: the checkpoints have {self.unpaired.no_change_in()}"
            return f"changes nothing, since both checkpoints contain the same numbers{self.unpaired.remark()}"
        kept, truncated, rounded, fitted, left_out = self.percents
        kept = "all" if self.kept == 1 and not self.unpaired.is_complete else kept
        parts = [f"{self._keeps(kept)}{self.unpaired.remark(1 - self.kept)}"]
        if self.truncated > 0:
            parts.append(f"{truncated} is truncated at rank {rank}")
        if self.rounded >= 0.001:
            parts.append(f"{rounded} is lost to rounding")
        if self.fitted:
            parts.append(f"{fitted} is given up to fit the predictions")
        if self.left_out > 0:
            tensors = count(sum(number for number, _ in self.by_kind().values()), "tensor")
            parts.append(f"{left_out} is in {tensors} that {self._omission(server)}")
        unknown = [tensor.kind for tensor in self.tensors if tensor.share is None]
        if unknown:
            names = listing([kind_in_words(kind) for kind in dict.fromkeys(unknown)], most=4)
            are = "is" if len(unknown) == 1 else "are"
            parts.append(f"{count(len(unknown), 'tensor')} {are} not counted ({names})")
        return "; ".join(parts)

    def _keeps(self, kept: str) -> str:
        """Factors that are fitted to predictions can be farther from the finetune's weights than the base is."""
        if self.kept < 0:
            return f"keeps nothing of the change in the weights: {self._what_is_left('its energy')}"
        return f"keeps {kept} of the change in the weights"

    def _what_is_left(self, energy: str) -> str:
        return f"the difference that is left has {figure(1 - self.kept)} times {energy}"

    @property
    def why_negative(self) -> str:
        """Why `kept` is negative, for a table; "" where it is not."""
        return f"negative: {self._what_is_left('the energy of the change')}" if self.kept < 0 else ""

    def limit(self) -> str:
        """The tensors that cost more than the rank does, and hold most of what is left out; "" if there are none."""
        known = [tensor for tensor in self.tensors if tensor.share]
        limit = RankLimit.of(
            [LeftOutShare(each.name, each.share or 0.0, each.reason.startswith(IS_HEAD_TOO)) for each in known]
        )
        is_more = limit is not None and limit.exceeds(self.truncated + self.rounded)
        return limit.sentence("this adapter") if limit and is_more else ""

    def _omission(self, server: Server) -> str:
        """Why the tensors are left out, with the names of their kinds."""
        kinds = list(self.by_kind())
        may_be_included = {tensor.kind for tensor in self.tensors if tensor.reason.endswith(IF_INCLUDED)}
        on_request = [kind_in_words(kind) for kind in kinds if kind in may_be_included]
        never = [kind_in_words(kind) for kind in kinds if kind not in may_be_included]
        on_request_only = f"loads only if included by name ({listing(on_request)})"
        if not never:
            return f"{server.title} {on_request_only}"
        return f"{server.omission} ({listing(never, most=4)})" + (f" or {on_request_only}" if on_request else "")

    @property
    def percents(self) -> list[str]:
        """Kept, truncated, rounded, given up by fitting predictions, and left out, as text: "71 %".

        Those that fitting does not change read as in the budget of plain extraction at this rank.
        """
        kept, truncated, rounded, left_out = percents(
            [self.kept + self.fitted, self.truncated, self.rounded, self.left_out]
        )
        return [percent(self.kept) if self.fitted else kept, truncated, rounded, percent(self.fitted), left_out]

    @classmethod
    def figures(cls) -> dict[str, Any]:
        """The names and types of what is written beside the fields."""
        return {"kinds": tuple[KindShare, ...]}

    def to_plain(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "truncated": self.truncated,
            "rounded": self.rounded,
            "left_out": self.left_out,
            "fitted": self.fitted,
            "energy": self.energy,
            "unpaired": to_plain(self.unpaired),
            "kinds": [
                to_plain(KindShare(kind_in_words(kind), number, share))
                for kind, (number, share) in self.by_kind().items()
            ],
            "tensors": to_plain(self.tensors),
        }


def _left_out(tensor: OmittedTensor, whole: float) -> LeftOut:
    name, kind, reason, energy = tensor
    return LeftOut(name, kind, reason, None if energy is None else energy / whole)
