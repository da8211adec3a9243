"""Documents scored against the finetune, one candidate after another; what is scored stays on disk until the end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deltarank.divergence import Document, TokenStats, compare_logits
from deltarank.errors import JobError
from deltarank.jobs.outputs.loaded_model import LoadedModel
from deltarank.models import Head, PredictionStore, Window, batch_windows

Done = Callable[[int], None]
"""Hears how many tokens went through a model."""


@dataclass(frozen=True)
class TextSet:
    """Documents of one text, by their numbers among all documents of the job."""

    name: str
    numbers: tuple[int, ...]
    own: bool = False


class Scorer:
    """All documents of a job, what the finetune predicts in them, and the scores of candidates.

    Args:
        size, tokens: see `batch_windows`.
        folder: where predictions and scores are kept: FOLDER/reference, FOLDER/scores-NNN.
    """

    def __init__(self, documents: Sequence[Document], folder: Path, *, size: int | None, tokens: int) -> None:
        self.documents, self._folder = documents, folder
        self.windows = [Window.from_mask(document.ids, document.scored) for document in documents]
        self._batches = batch_windows(self.windows, size=size, tokens=tokens)
        self._predictions = PredictionStore(folder / "reference")
        self._head: Head | None = None

    def refer(self, model: LoadedModel, done: Done) -> None:
        """Keeps what the finetune predicts.

        Raises:
            JobError: (slug "outputs-not-finite") that is NaN.
        """
        for batch in self._batches:
            if self._predictions.has_head and all(map(self._predictions.has, batch)):
                done(self._length(batch))
                continue
            head_inputs, head = model.predict([self.windows[i] for i in batch])
            self._check_finite(head_inputs)
            for number, each in zip(batch, head_inputs, strict=True):
                self._predictions.save(number, each)
            if not self._predictions.has_head:
                self._predictions.save_head(head)
            done(self._length(batch))

    def score(self, number: int, model: LoadedModel, done: Done, *, only: Collection[int] | None = None) -> None:
        """Scores the documents that candidate `number` has no scores of.

        A document with a token that the candidate's vocabulary lacks is left out.
        """
        folder = self._folder / f"scores-{number:03}"
        folder.mkdir(parents=True, exist_ok=True)
        for batch in self._batches:
            chosen = [i for i in batch if (only is None or i in only) and self.can_read(model, i)]
            if any(not self._file(number, i).is_file() for i in chosen):
                head_inputs, head = model.predict([self.windows[i] for i in chosen])
                for i, each in zip(chosen, head_inputs, strict=True):
                    self._compare(i, each, head).save(self._file(number, i))
            done(self._length(batch))

    def can_read(self, model: LoadedModel, number: int) -> bool:
        return max(self.windows[number].ids) < model.candidate.skeleton.vocabulary

    def stats(self, number: int, numbers: Sequence[int]) -> dict[str, TokenStats]:
        """The scores of a candidate on these documents, by their names."""
        files = {self.documents[i].name: self._file(number, i) for i in numbers}
        return {name: TokenStats.load(file) for name, file in files.items() if file.is_file()}

    def _compare(self, number: int, head_inputs: Tensor, head: Head) -> TokenStats:
        """One document, some tokens at a time."""
        window, device = self.windows[number], head_inputs.device
        reference, reference_head = self._predictions.load(number).to(device), self._reference_head(device)
        step = min(head.tokens_per_chunk, reference_head.tokens_per_chunk)
        parts = []
        for first in range(0, len(window.rows), step):
            rows = slice(first, first + step)
            parts.append(
                compare_logits(
                    reference_head.logits(reference[rows]),
                    head.logits(head_inputs[rows]),
                    torch.tensor(window.targets[rows]),
                    positions=torch.tensor(window.rows[rows]) + 1,
                )
            )
        return TokenStats.concatenate(parts)

    def _reference_head(self, device: torch.device) -> Head:
        if self._head is None:
            self._head = self._predictions.load_head().to(device)
        return self._head

    def _check_finite(self, head_inputs: Sequence[Tensor]) -> None:
        bad = sum(int((~each.isfinite()).any(-1).sum()) for each in head_inputs)
        if bad:
            raise JobError(
                f"the finetune's own predictions are NaN or infinite at {bad:,} of "
                f"{sum(map(len, head_inputs)):,} tokens of a batch.",
                cure="Use --dtype float32 (float16 overflows where bfloat16 does not), or look for NaN in the "
                "checkpoint: `deltarank compare` names the tensors.",
                slug="outputs-not-finite",
            )

    def _file(self, number: int, document: int) -> Path:
        return self._folder / f"scores-{number:03}" / f"{document:06}.npz"

    def _length(self, batch: Sequence[int]) -> int:
        return sum(len(self.windows[i].ids) for i in batch)

    @property
    def tokens(self) -> int:
        return sum(len(window.ids) for window in self.windows)
