"""Documents scored against the finetune, one candidate after another. Scores stay on disk until the job ends."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.divergence import Document, TokenStats, compare_logits
from deltarank.errors import JobError
from deltarank.jobs.outputs.callbacks import OnFinished
from deltarank.jobs.outputs.loaded_model import LoadedModel
from deltarank.jobs.outputs.partial_folder import PartialFolder
from deltarank.models import Head, PredictionStore, Window, batch_windows


@dataclass(frozen=True)
class TextSet:
    """The documents of one text.

    first            index of its first document among all documents of the job
    own              whether the finetune wrote them
    """

    name: str
    first: int
    documents: Sequence[Document]
    own: bool = False

    @property
    def numbers(self) -> range:
        """Indices of its documents among all documents of the job."""
        return range(self.first, self.first + len(self.documents))


class Scorer:
    """All documents of a job, the finetune's predictions in them, and the scores of the candidates.

    Args:
        size, tokens: see `batch_windows`.
        folder: where predictions and scores are stored.
    """

    def __init__(self, documents: Sequence[Document], folder: PartialFolder, *, size: int | None, tokens: int) -> None:
        self.documents, self._folder = documents, folder
        self._windows = [Window.from_mask(document.ids, document.scored) for document in documents]
        self._batches = batch_windows(self._windows, size=size, tokens=tokens)
        self._predictions = PredictionStore(folder.reference)
        self._reference_head: Head | None = None

    def store_reference(self, finetune: LoadedModel, on_finished: OnFinished) -> None:
        """Stores the predictions of the finetune, except for batches that are stored already.

        Args:
            on_finished: called with numbers of tokens.

        Raises:
            JobError: (slug "outputs-not-finite") a prediction is NaN or infinite.
        """
        for batch in self._batches:
            is_stored = self._predictions.has_head and all(map(self._predictions.has, batch))
            if not is_stored:
                head_inputs, head = finetune.predict([self._windows[i] for i in batch])
                _check_finite(head_inputs)
                for number, each in zip(batch, head_inputs, strict=True):
                    self._predictions.save(number, each)
                if not self._predictions.has_head:
                    self._predictions.save_head(head)
            on_finished(self.count_tokens(batch), resumed=is_stored)

    def score(
        self, candidate: int, model: LoadedModel, on_finished: OnFinished, *, only: Collection[int] | None = None
    ) -> None:
        """Scores the documents of which the candidate has no scores yet.

        A document with a token that the candidate's vocabulary lacks is left out.

        Args:
            candidate: its number.
            on_finished: called with numbers of tokens, those of documents that are left out included.
            only: indices of the documents to score; None: all.
        """
        for batch in self._batches:
            chosen = [i for i in batch if only is None or i in only]
            readable = [i for i in chosen if self.can_read(model, i)]
            is_stored = all(self._folder.scores(candidate, i).is_file() for i in readable)
            if not is_stored:
                head_inputs, head = model.predict([self._windows[i] for i in readable])
                for i, each in zip(readable, head_inputs, strict=True):
                    file = self._folder.scores(candidate, i)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    self._compare(i, each, head).save(file)
            if chosen:
                on_finished(self.count_tokens(chosen), resumed=is_stored)

    def count_tokens(self, documents: Iterable[int]) -> int:
        return sum(len(self._windows[i].ids) for i in documents)

    def whole_batches(self, texts: Sequence[TextSet], tokens: int) -> frozenset[int]:
        """Documents of whole batches, until so many tokens of each text are among them.

        In the batches in which the reference read them, equal weights give equal numbers to the last bit.
        """
        chosen: set[int] = set()
        for batch in self._batches:
            if any(self._lacks(text, tokens, chosen) and set(batch) & set(text.numbers) for text in texts):
                chosen |= set(batch)
        return frozenset(chosen)

    def _lacks(self, text: TextSet, tokens: int, chosen: set[int]) -> bool:
        return self.count_tokens(chosen & set(text.numbers)) < tokens

    def can_read(self, model: LoadedModel, document: int) -> bool:
        """Whether the model's vocabulary has all tokens of the document."""
        return max(self._windows[document].ids) < model.candidate.skeleton.vocabulary

    def stats(self, candidate: int, documents: Sequence[int]) -> dict[str, TokenStats]:
        """The scores of a candidate on these documents, by their names."""
        files = {self.documents[i].name: self._folder.scores(candidate, i) for i in documents}
        return {name: TokenStats.load(file) for name, file in files.items() if file.is_file()}

    def _compare(self, document: int, head_inputs: Tensor, head: Head) -> TokenStats:
        """The scores of one document, computed some tokens at a time."""
        window, device = self._windows[document], head_inputs.device
        reference = self._predictions.load(document).to(device)
        if self._reference_head is None:
            self._reference_head = self._predictions.load_head().to(device)
        step = min(head.tokens_per_chunk, self._reference_head.tokens_per_chunk)
        parts = []
        for first in range(0, len(window.rows), step):
            rows = slice(first, first + step)
            parts.append(
                compare_logits(
                    self._reference_head.logits(reference[rows]),
                    head.logits(head_inputs[rows]),
                    torch.tensor(window.targets[rows]),
                    positions=torch.tensor(window.rows[rows]) + 1,
                )
            )
        return TokenStats.concatenate(parts)


def _check_finite(head_inputs: Sequence[Tensor]) -> None:
    bad = sum(int((~each.isfinite()).any(-1).sum()) for each in head_inputs)
    if bad:
        raise JobError(
            f"The finetune's own predictions are NaN or infinite for {bad:,} of the "
            f"{sum(map(len, head_inputs)):,} tokens in a batch.",
            cure="Use --dtype float32 (float16 overflows where bfloat16 does not), or look for NaN in the checkpoint: "
            "`deltarank compare` names the tensors.",
            slug="outputs-not-finite",
        )
