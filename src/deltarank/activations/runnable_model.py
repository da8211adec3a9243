"""A checkpoint as a model that runs, and the inputs that its matrices get while it reads a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch

from deltarank.activations.documents import CalibrationDocuments
from deltarank.activations.matrix_places import MatrixPlaces
from deltarank.checkpoints import FLOAT_DTYPES, Checkpoint, Pair
from deltarank.divergence import Tokenizer
from deltarank.errors import CheckpointError
from deltarank.models import (
    AnyModel,
    EditedWeights,
    InputSum,
    ModelFolder,
    ModelSkeleton,
    load_model,
    load_tokenizer,
    load_tokenizer_of,
    read_skeleton,
    sum_inputs,
    translate_out_of_memory,
)
from deltarank.spectra import InputGram


@dataclass(frozen=True)
class MatrixInputs:
    """The inputs of one matrix: their Gram matrix for each use of it, and how many there were."""

    grams: tuple[InputGram, ...]
    tokens: int


@dataclass(frozen=True)
class RunnableModel:
    """A model without its weights, which are read when it is loaded."""

    checkpoint: Checkpoint
    skeleton: ModelSkeleton
    tokenizer: Tokenizer
    device: torch.device

    @classmethod
    def open(cls, checkpoint: Checkpoint, base: Checkpoint, device: torch.device) -> Self:
        """Reads the configuration and the tokenizer.

        Args:
            base: has the tokenizer, where the checkpoint has none.

        Raises:
            CheckpointError, UsageError, JobError: what `read_skeleton` and `load_tokenizer` raise.
        """
        skeleton = read_skeleton(checkpoint)
        try:
            tokenizer = load_tokenizer_of(skeleton)
        except CheckpointError:
            tokenizer = load_tokenizer(ModelFolder.of_checkpoint(base))
        return cls(checkpoint, skeleton, tokenizer, device)

    @cached_property
    def places(self) -> MatrixPlaces:
        return MatrixPlaces(self.checkpoint, self.skeleton)

    @property
    def dtype(self) -> torch.dtype:
        """The type that it runs in: float32 on a CPU, else the one that most of its numbers are stored in."""
        entries = Counter[str]()
        for info in self.checkpoint.tensors.values():
            entries[info.dtype] += info.entries
        [(stored, _)] = entries.most_common(1) or [("F32", 0)]
        return torch.float32 if self.device.type == "cpu" else FLOAT_DTYPES.get(stored, torch.float32)

    @property
    def weight_bytes(self) -> int:
        return self.skeleton.parameters * self.dtype.itemsize

    def load(self) -> RunningModel:
        """With its weights.

        Raises:
            JobError: (slug "out-of-memory") it does not fit after all.
            CheckpointError: a tensor cannot be read, or is missing.
        """
        weights = EditedWeights(self.checkpoint, [], self.device)
        with translate_out_of_memory(self.device):
            model = load_model(self.skeleton, weights, dtype=self.dtype, device=self.device)
        return RunningModel(self, model)


@dataclass(frozen=True)
class RunningModel:
    """A model with its weights."""

    runnable: RunnableModel
    model: AnyModel

    def inputs(
        self,
        pairs: Sequence[Pair],
        text: CalibrationDocuments,
        on_document: Callable[[int], None] = lambda tokens: None,
    ) -> Mapping[str, MatrixInputs]:
        """The inputs of the matrices of these pairs, by the names of the pairs; see `models.sum_inputs`.

        A matrix without a place in the model, or whose product was not seen, is missing. One that no token reached is
        there, without grams.
        """
        slots = self.runnable.places.find(pairs)
        sums = sum_inputs(self.model, text.ids, list(dict.fromkeys(slots.values())), on_document)
        found = {pair.name: _inputs(pair, sums.get(slots[pair.name], ())) for pair in pairs if pair.name in slots}
        return {
            name: inputs
            for name, inputs in found.items()
            if inputs.grams or slots[name].index is not None  # an expert that no token is routed to is not called
        }


def _inputs(pair: Pair, uses: Sequence[InputSum]) -> MatrixInputs:
    """Uses in which all rows of the pair's matrix take part."""
    rows, columns = pair.shape
    fitting = [use for use in uses if len(use.total) == (rows if use.on_rows else columns)]
    grams = tuple(InputGram(use.total, use.on_rows) for use in fitting)
    return MatrixInputs(grams, max((use.tokens for use in fitting), default=0))
