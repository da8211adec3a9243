"""Which parts of a model matter: the finetune is scored with one part at a time truncated to rank r."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deltarank.checkpoints import Pair, Pairing
from deltarank.divergence import PartMeasurement, TokenStats, summarise_attribution
from deltarank.jobs.outputs.callbacks import OnFinished
from deltarank.jobs.outputs.candidates import Candidate
from deltarank.jobs.outputs.loaded_model import LoadedModel, ModelLoader
from deltarank.jobs.outputs.low_rank import LowRankDeltas, lora_matrices
from deltarank.jobs.outputs.model_pair import ModelPair
from deltarank.jobs.outputs.scoring import Scorer, TextSet
from deltarank.models import EditedWeights, Head, Window, file_tensor_names
from deltarank.results import AttributionResult, CandidateKind


@dataclass(frozen=True)
class Attribution:
    """The measurement of all parts of one unit, "module" or "layer".

    all_parts        the number of the candidate that has all parts truncated, which was scored before
    first_number     the number that the scores of the first part are stored under; those of the others follow
    seed             of the bootstrap intervals
    on_tokens        makes a callback of the name of a part, and of the number of tokens in the text
    """

    models: ModelPair
    deltas: LowRankDeltas
    scorer: Scorer
    loader: ModelLoader
    unit: str
    rank: int
    all_parts: int
    first_number: int
    seed: int
    on_tokens: Callable[[str, int], OnFinished]

    def measure(self, texts: Sequence[TextSet]) -> AttributionResult:
        """Scores the parts on one text: the finetune's own answers if there are any."""
        text = next((each for each in texts if each.own), texts[0])
        measurements = [
            self._measurement(name, self._score(number, name, model, text))
            for number, (name, model) in enumerate(self._truncated_models(), start=self.first_number)
        ]
        all_parts = self.scorer.stats(self.all_parts, text.numbers)
        return summarise_attribution(self.rank, self.unit, text.name, measurements, all_parts, seed=self.seed)

    @cached_property
    def _parts(self) -> dict[str, list[str]]:
        return matrices_by_part(self.models.pairing, self.unit)

    def _score(self, number: int, name: str, model: LoadedModel, text: TextSet) -> Mapping[str, TokenStats]:
        on_finished = self.on_tokens(name, self.scorer.count_tokens(text.numbers))
        self.scorer.score(number, model, on_finished, only=frozenset(text.numbers))
        return self.scorer.stats(number, text.numbers)

    def _truncated_models(self) -> Iterator[tuple[str, LoadedModel]]:
        """A model for each part: one model whose tensors are overwritten, or where that is not possible a new one."""
        names = None if self.loader.streams else _overwritable_tensors(self.models)
        if names is None:
            for part, matrices in self._parts.items():
                with LoadedModel(self._candidate(part, matrices), self.loader) as model:
                    yield part, model
            return
        with LoadedModel(self._candidate("parts", []), self.loader) as model:
            for part, matrices in self._parts.items():
                yield part, _OverwrittenModel(self._candidate(part, matrices), model, names)

    def _candidate(self, name: str, matrices: Sequence[str]) -> Candidate:
        """The finetune with these matrices truncated."""
        weights = self.models.finetune_weights(self.deltas.finetune_edits(self.rank, matrices))
        return Candidate(name, CandidateKind.MODEL, self.models.finetune_skeleton, weights)

    def _measurement(self, name: str, stats: Mapping[str, TokenStats]) -> PartMeasurement:
        matrices = self._parts[name]
        lost, energy = self.deltas.lost(self.rank, matrices)
        pair = self.deltas.pairs[matrices[0]]
        layer, module = (pair.layer, None) if self.unit == "layer" else (None, pair.module)
        return PartMeasurement(name, layer, module, lost, energy, stats)


class _OverwrittenModel(LoadedModel):
    """A loaded model that has the weights of another candidate while it predicts.

    Args:
        names: the name in the files for each tensor of the model.
    """

    def __init__(self, candidate: Candidate, loaded: LoadedModel, names: Mapping[str, str]) -> None:
        super().__init__(candidate, loaded.loader)
        self._loaded, self._names = loaded, names

    def predict(self, windows: Sequence[Window]) -> tuple[list[Tensor], Head]:
        self._overwrite(self.candidate.weights)
        try:
            return self._loaded.predict(windows)
        finally:
            self._overwrite(self._loaded.candidate.weights)

    @torch.no_grad()
    def _overwrite(self, weights: EditedWeights) -> None:
        """Copies the tensors that the candidate changes from `weights`."""
        state = self._loaded.model.state_dict()
        for model_name, file_name in self._names.items():
            if file_name in self.candidate.weights.edits:
                state[model_name].copy_(weights.tensor(file_name))


def loaded_models(models: ModelPair, parts: int) -> int:
    """How many models the measurement of so many parts loads, if they fit into memory."""
    return parts if _overwritable_tensors(models) is None else 1


def _overwritable_tensors(models: ModelPair) -> dict[str, str] | None:
    """The name in the finetune's files for each tensor of its model; None if some tensor is made of several."""
    return file_tensor_names(models.finetune_skeleton, models.finetune_weights())


def matrices_by_part(pairing: Pairing, unit: str) -> dict[str, list[str]]:
    """The names of the matrices that make a part, by the name of the part."""
    parts: dict[str, list[str]] = {}
    for pair in lora_matrices(pairing.pairs):
        parts.setdefault(_layer_name(pair) if unit == "layer" else pair.module, []).append(pair.name)
    return parts


def _layer_name(pair: Pair) -> str:
    return "no layer" if pair.layer is None else f"layer {pair.layer}"
