"""The finetune with one part at a time at rank r: by writing into the model that is there, where names allow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltarank.divergence import Swap, attribution_of
from deltarank.jobs.outputs.candidates import Cast, Member
from deltarank.jobs.outputs.loaded_model import Maker, Turn
from deltarank.jobs.outputs.low_rank import LowRank
from deltarank.jobs.outputs.scoring import Done, Scorer, TextSet
from deltarank.models import Weights, file_names
from deltarank.results import Attribution, CandidateKind

LAYER, MATRIX = "layer", "matrix"


@dataclass(frozen=True)
class Swaps:
    """All parts of one unit.

    parts            the matrices of each, by its name
    first            the number that scores of "all parts at once" are kept under; those of the parts follow
    read             gives what hears of tokens that were read
    """

    cast: Cast
    low: LowRank
    scorer: Scorer
    maker: Maker
    parts: Mapping[str, Sequence[str]]
    unit: str
    rank: int
    first: int
    read: Callable[[str], Done]

    def attributions(self, texts: Sequence[TextSet]) -> tuple[Attribution, ...]:
        """On one text: the finetune's own where there is one."""
        text = next((each for each in texts if each.own), texts[0])
        only = frozenset(text.numbers)
        names = [name for part in self.parts.values() for name in part]
        stage = self.cast.stage
        member = Member("all parts", CandidateKind.MODEL, stage.plan, self.cast.part(self.low, self.rank, names))
        with Turn(member, self.maker) as turn:
            self.scorer.score(self.first, turn, self.read("all parts"), only=only)
        swaps = []
        for number, (name, turn) in enumerate(self._turns(), start=self.first + 1):
            self.scorer.score(number, turn, self.read(name), only=only)
            swaps.append(self._swap(name, self.scorer.stats(number, text.numbers)))
        together = self.scorer.stats(self.first, text.numbers)
        return (attribution_of(self.rank, self.unit, text.name, swaps, together),)

    def _turns(self) -> Iterator[tuple[str, Turn]]:
        """A turn for each part: of one model that is written into, or of a new one each."""
        stage = self.cast.stage
        plain = stage.of_finetune()
        names = None if self.maker.streams else file_names(stage.plan, plain)
        if names is None:
            for part, matrices in self.parts.items():
                with Turn(self._member(part, matrices), self.maker) as turn:
                    yield part, turn
            return
        with Turn(Member("parts", CandidateKind.MODEL, stage.plan, plain), self.maker) as turn:
            for part, matrices in self.parts.items():
                member = self._member(part, matrices)
                yield part, _Written(member, turn, names, plain)

    def _member(self, part: str, matrices: Sequence[str]) -> Member:
        weights = self.cast.part(self.low, self.rank, matrices)
        return Member(part, CandidateKind.MODEL, self.cast.stage.plan, weights)

    def _swap(self, name: str, stats: Mapping[str, Any]) -> Swap:
        matrices = self.parts[name]
        lost, energy = self.low.lost(self.rank, matrices)
        pair = self.low.pairs[matrices[0]]
        layer = pair.layer if self.unit in (LAYER, MATRIX) else None
        module = None if self.unit == LAYER else pair.module
        return Swap(name, layer, module, lost, energy, stats)


class _Written(Turn):
    """Another model's turn, with some of its tensors replaced while it predicts."""

    def __init__(self, member: Member, turn: Turn, names: Mapping[str, str], plain: Weights) -> None:
        super().__init__(member, turn.maker)
        self._turn, self._names, self._plain = turn, names, plain

    def kept(self, windows: Sequence[Any]) -> Any:
        self._put(self.member.weights)
        try:
            return self._turn.kept(windows)
        finally:
            self._put(self._plain)

    @torch.no_grad()
    def _put(self, weights: Weights) -> None:
        """The tensors that the part changes, from these weights."""
        state = self._turn.model.state_dict()
        for model_name, file_name in self._names.items():
            if file_name in self.member.weights.edits:
                state[model_name].copy_(weights.tensor(file_name))
