"""The documents of a calibration text: from files, cut to a number of tokens, the same ones each time."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltarank.divergence import LONGEST_DOCUMENT, Document, Tokenizer, read_texts
from deltarank.errors import UsageError

_SEED = 0


@dataclass(frozen=True)
class CalibrationDocuments:
    """The documents that a model reads.

    name       of the files or folders
    """

    name: str
    documents: tuple[Document, ...]

    @property
    def ids(self) -> list[tuple[int, ...]]:
        """The tokens of each document."""
        return [document.ids for document in self.documents]

    @property
    def tokens(self) -> int:
        return sum(len(document.ids) for document in self.documents)


def read_documents(
    paths: Sequence[Path], tokenizer: Tokenizer, *, tokens: int, context: int, vocabulary: int
) -> CalibrationDocuments:
    """Documents of all texts, in the order of a shuffle with a fixed seed, until they have so many tokens.

    The last one is cut. Documents with a token beyond the model's vocabulary are left out.

    Args:
        context: the longest text that the model takes, in tokens.
        vocabulary: its number of tokens.

    Raises:
        UsageError: (slug "text-short") no document is left; and what `read_texts` raises.
        JobError: what `read_texts` raises.
    """
    texts = read_texts(paths, tokenizer, context=min(LONGEST_DOCUMENT, context))
    documents = [each for _, documents in texts for each in documents if max(each.ids) < vocabulary]
    chosen = _up_to(random.Random(_SEED).sample(documents, len(documents)), tokens)
    if not chosen:
        raise UsageError(
            f"No document of {', '.join(map(str, paths))} has only tokens of the model's vocabulary of {vocabulary:,}.",
            cure="Use a text that the finetune's tokenizer covers.",
            slug="text-short",
        )
    return CalibrationDocuments(", ".join(name for name, _ in texts), tuple(chosen))


def _up_to(documents: Sequence[Document], tokens: int) -> list[Document]:
    chosen: list[Document] = []
    left = tokens
    for document in documents:
        if left < 2:  # the first token of a document is left out, so one alone says nothing
            break
        chosen.append(Document(document.name, document.ids[:left], document.scored[:left]))
        left -= len(document.ids)
    return chosen
