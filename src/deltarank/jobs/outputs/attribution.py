"""The finetune with one part at a time at rank r: by writing into the model that is there, where names allow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deltarank.divergence import PartMeasurement, summarise_attribution
from deltarank.jobs.outputs.candidates import Candidate, CandidateSet
from deltarank.jobs.outputs.loaded_model import LoadedModel, ModelLoader
from deltarank.jobs.outputs.low_rank import LowRank
from deltarank.jobs.outputs.scoring import Done, Scorer, TextSet
from deltarank.models import EditedWeights, file_tensor_names
from deltarank.results import AttributionResult, CandidateKind

LAYER, MATRIX = "layer", "matrix"


@dataclass(frozen=True)
class Attribution:
    """All parts of one unit.

    parts            the matrices of each, by its name
    first            the number that scores of "all parts at once" are kept under; those of the parts follow
    read             gives what hears of tokens that were read
    """

    candidate_set: CandidateSet
    low: LowRank
    scorer: Scorer
    loader: ModelLoader
    parts: Mapping[str, Sequence[str]]
    unit: str
    rank: int
    first: int
    read: Callable[[str], Done]

    def attributions(self, texts: Sequence[TextSet]) -> tuple[AttributionResult, ...]:
        """On one text: the finetune's own where there is one."""
        text = next((each for each in texts if each.own), texts[0])
        only = frozenset(text.numbers)
        names = [name for part in self.parts.values() for name in part]
        models = self.candidate_set.models
        candidate = Candidate(
            "all parts", CandidateKind.MODEL, models.skeleton, self.candidate_set.part(self.low, self.rank, names)
        )
        with LoadedModel(candidate, self.loader) as model:
            self.scorer.score(self.first, model, self.read("all parts"), only=only)
        swaps = []
        for number, (name, model) in enumerate(self._models(), start=self.first + 1):
            self.scorer.score(number, model, self.read(name), only=only)
            swaps.append(self._swap(name, self.scorer.stats(number, text.numbers)))
        together = self.scorer.stats(self.first, text.numbers)
        return (summarise_attribution(self.rank, self.unit, text.name, swaps, together),)

    def _models(self) -> Iterator[tuple[str, LoadedModel]]:
        """A model for each part: of one model that is written into, or of a new one each."""
        models = self.candidate_set.models
        plain = models.of_finetune()
        names = None if self.loader.streams else file_tensor_names(models.skeleton, plain)
        if names is None:
            for part, matrices in self.parts.items():
                with LoadedModel(self._member(part, matrices), self.loader) as model:
                    yield part, model
            return
        with LoadedModel(Candidate("parts", CandidateKind.MODEL, models.skeleton, plain), self.loader) as model:
            for part, matrices in self.parts.items():
                candidate = self._member(part, matrices)
                yield part, _Written(candidate, model, names, plain)

    def _member(self, part: str, matrices: Sequence[str]) -> Candidate:
        weights = self.candidate_set.part(self.low, self.rank, matrices)
        return Candidate(part, CandidateKind.MODEL, self.candidate_set.models.skeleton, weights)

    def _swap(self, name: str, stats: Mapping[str, Any]) -> PartMeasurement:
        matrices = self.parts[name]
        lost, energy = self.low.lost(self.rank, matrices)
        pair = self.low.pairs[matrices[0]]
        layer = pair.layer if self.unit in (LAYER, MATRIX) else None
        module = None if self.unit == LAYER else pair.module
        return PartMeasurement(name, layer, module, lost, energy, stats)


class _Written(LoadedModel):
    """Another model's model, with some of its tensors replaced while it predicts."""

    def __init__(
        self, candidate: Candidate, model: LoadedModel, names: Mapping[str, str], plain: EditedWeights
    ) -> None:
        super().__init__(candidate, model.loader)
        self._turn, self._names, self._plain = model, names, plain

    def predict(self, windows: Sequence[Any]) -> Any:
        self._put(self.candidate.weights)
        try:
            return self._turn.predict(windows)
        finally:
            self._put(self._plain)

    @torch.no_grad()
    def _put(self, weights: EditedWeights) -> None:
        """The tensors that the part changes, from these weights."""
        state = self._turn.model.state_dict()
        for model_name, file_name in self._names.items():
            if file_name in self.candidate.weights.edits:
                state[model_name].copy_(weights.tensor(file_name))
