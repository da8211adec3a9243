"""The texts of a calibration, split by document into three parts: one fits, one chooses, one is only scored."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from deltarank.divergence import Document, Tokenizer, encode_record, find_text_files, read_json_lines, read_text_file
from deltarank.errors import UsageError
from deltarank.jobs.calibrate.options import FEWEST_DOCUMENTS, FEWEST_TOKENS
from deltarank.system import write_text_atomically

PASSAGE_CHARACTERS = 1_200
"""A .txt file is cut between paragraphs into passages of about this length, a few hundred tokens each."""

CHOOSING_SHARE = SCORING_SHARE = 0.2
"""Of the documents."""

LONGEST_DOCUMENT = 512
"""Tokens that a model reads at once. Activations with gradients take much more memory than `outputs` needs."""

Record = Mapping[str, Any]
"""A document as a .jsonl file has it: {"text": ...} or {"messages": [...]}."""


@dataclass(frozen=True)
class Split:
    """Three parts without a common document. Equal documents count once.

    fit        documents that the factors are fitted to
    choose     documents that choose the step
    score      documents that are only scored
    """

    fit: tuple[Record, ...]
    choose: tuple[Record, ...]
    score: tuple[Record, ...]

    def write(self, folder: Path) -> None:
        """Writes fit.jsonl, choose.jsonl and score.jsonl."""
        for name, records in vars(self).items():
            write_records(folder / f"{name}.jsonl", records)


def write_records(path: Path, records: Iterable[Record]) -> None:
    write_text_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_records_of(paths: Sequence[Path]) -> list[Record]:
    """The documents of these files and folders.

    Raises:
        UsageError, JobError: see `read_texts`.
    """
    return [record for path in paths for file in find_text_files(path) for record in _records_of_file(file)]


def _records_of_file(file: Path) -> Iterator[Record]:
    if file.suffix.lower() == ".jsonl":
        yield from (record for _, record in read_json_lines(file))
    else:
        yield from ({"text": passage} for passage in passages(read_text_file(file)))


def passages(text: str) -> Iterator[str]:
    """Whole paragraphs, joined to about PASSAGE_CHARACTERS. A longer one is cut between sentences, then anywhere."""
    passage = ""
    for piece in _pieces(text):
        if passage and len(passage) + len(piece) > PASSAGE_CHARACTERS:
            yield passage.strip()
            passage = ""
        passage += piece
    if passage.strip():
        yield passage.strip()


def _pieces(text: str) -> Iterator[str]:
    for paragraph in re.split(r"(?<=\n)\s*\n", text):
        if len(paragraph) <= PASSAGE_CHARACTERS:
            yield paragraph + "\n"
            continue
        for sentence in re.split(r"(?<=[.!?。！？\n])\s*", paragraph):
            yield from (
                sentence[start : start + PASSAGE_CHARACTERS] + " "
                for start in range(0, len(sentence), PASSAGE_CHARACTERS)
            )


def split_records(records: Sequence[Record], tokenizer: Tokenizer, *, tokens: int, context: int, seed: int) -> Split:
    """Splits at random, by document, or by "group" where a record names one. Of equal documents the first counts.

    Args:
        tokens: documents are taken until they have this many tokens.

    Raises:
        UsageError: (slug "text-short") there are too few documents or tokens.
    """
    groups: list[list[Record]] = []
    total = scored = 0
    for group in _shuffled_groups(records, seed):
        documents = [document for record in group for document in encode(record, tokenizer, context=context)]
        if documents and total < tokens:
            groups.append(group)
            total += sum(len(document.ids) for document in documents)
            scored += sum(document.scored_tokens for document in documents)
    if len(groups) < FEWEST_DOCUMENTS or scored < FEWEST_TOKENS:
        raise _too_short(len(groups), scored)
    choose, score = (max(2, round(share * len(groups))) for share in (CHOOSING_SHARE, SCORING_SHARE))
    parts = groups[choose + score :], groups[:choose], groups[choose : choose + score]
    return Split(*(tuple(record for group in part for record in group) for part in parts))


def encode(record: Record, tokenizer: Tokenizer, *, context: int) -> list[Document]:
    """The documents of a record, each at most LONGEST_DOCUMENT tokens long."""
    return list(encode_record("document", record, tokenizer, min(LONGEST_DOCUMENT, context)))


def other_records() -> list[Record]:
    """The built-in passages: text of another kind."""
    text = resources.files("deltarank.divergence").joinpath("passages.jsonl").read_text(encoding="utf-8")
    return [{"text": json.loads(line)["text"]} for line in text.splitlines()]


def _shuffled_groups(records: Sequence[Record], seed: int) -> list[list[Record]]:
    """Documents of one "group" together, each once, in an order that depends on them and the seed alone."""
    groups: dict[str, dict[str, Record]] = {}
    for record in records:
        content = json.dumps({name: record[name] for name in ("text", "messages") if name in record}, sort_keys=True)
        groups.setdefault(str(record.get("group", content)), {}).setdefault(content, record)
    keys = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).hexdigest())
    return [list(groups[key].values()) for key in keys]


def _too_short(documents: int, scored: int) -> UsageError:
    return UsageError(
        f"The calibration texts are too short: {documents:,} documents with {scored:,} tokens to score.",
        cure=f"Give at least {FEWEST_DOCUMENTS} documents with {FEWEST_TOKENS:,} tokens in all; about 20,000 tokens "
        "work well. Or use --calibrate own: the finetune's own answers.",
        slug="text-short",
    )
