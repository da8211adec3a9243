"""Which parts of a model matter: the finetune is scored with one part at a time truncated to rank r."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from deltarank.checkpoints import Pair, Pairing
from deltarank.divergence import PartMeasurement, TokenStats, documents_needed, summarise_attribution
from deltarank.jobs.outputs.callbacks import OnFinished
from deltarank.jobs.outputs.candidates import Candidate
from deltarank.jobs.outputs.loaded_model import LoadedModel, ModelLoader
from deltarank.jobs.outputs.low_rank import LowRankDeltas, lora_matrices
from deltarank.jobs.outputs.model_pair import ModelPair
from deltarank.jobs.outputs.overwritten_model import OverwrittenModel
from deltarank.jobs.outputs.scoring import Scorer, TextSet
from deltarank.models import file_tensor_names
from deltarank.results import AttributionResult, CandidateKind

RELATIVE_WIDTH = 0.2
"""Parts are scored on as many documents as give the KLD of all parts an interval of so much to either side."""


@dataclass(frozen=True)
class Attribution:
    """The measurement of all parts of one unit, "module" or "layer".

    text             that the parts are scored on
    all_parts        the number of the candidate that has all parts truncated, which was scored before
    first_number     the number that the scores of the first part are stored under; those of the others follow
    seed             of the bootstrap intervals
    on_tokens        makes a callback of the name of a part, and of the number of tokens in the text
    """

    models: ModelPair
    deltas: LowRankDeltas
    scorer: Scorer
    loader: ModelLoader
    text: TextSet
    unit: str
    rank: int
    all_parts: int
    first_number: int
    seed: int
    on_tokens: Callable[[str, int], OnFinished]

    def measure(self) -> AttributionResult:
        """Scores the parts."""
        measurements = [
            self._measurement(name, self._score(number, name, model))
            for number, (name, model) in enumerate(self._truncated_models(), start=self.first_number)
        ]
        all_parts = self.scorer.stats(self.all_parts, self.documents)
        return summarise_attribution(self.rank, self.unit, self.text.name, measurements, all_parts, seed=self.seed)

    @cached_property
    def documents(self) -> Sequence[int]:
        """As many, evenly spaced, as the KLD of all parts needs for its interval; all of them if that is not known."""
        numbers = self.text.numbers
        whole = self.scorer.stats(self.all_parts, numbers)
        enough = documents_needed(whole, relative_width=RELATIVE_WIDTH, seed=self.seed)
        if enough is None or enough >= len(numbers):
            return numbers
        return [numbers[i * len(numbers) // enough] for i in range(enough)]

    @property
    def note(self) -> str | None:
        """What is left out, if anything is."""
        read, whole = len(self.documents), len(self.text.numbers)
        if read == whole:
            return None
        return (
            f"attribution reads {read:,} of the {whole:,} documents of {self.text.name!r}: enough for an interval of "
            f"about {100 * RELATIVE_WIDTH:.0f} % to either side of the KLD of all parts"
        )

    @cached_property
    def _parts(self) -> dict[str, list[str]]:
        return matrices_by_part(self.models.pairing, self.unit)

    def _score(self, number: int, name: str, model: LoadedModel) -> Mapping[str, TokenStats]:
        on_finished = self.on_tokens(name, self.scorer.count_tokens(self.documents))
        self.scorer.score(number, model, on_finished, only=frozenset(self.documents))
        return self.scorer.stats(number, self.documents)

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
                layer = self.deltas.pairs[matrices[0]].layer if self.unit == "layer" else None
                yield part, OverwrittenModel(self._candidate(part, matrices), model, names, layer=layer)

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
