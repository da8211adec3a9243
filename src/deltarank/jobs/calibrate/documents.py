"""The texts of a calibration, split by document into three parts: one fits, one chooses, one is only scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from deltarank.divergence import Document, Tokenizer, encode_record
from deltarank.errors import UsageError
from deltarank.jobs.calibrate.options import FEWEST_DOCUMENTS, FEWEST_TOKENS
from deltarank.jobs.calibrate.texts import Record, content_of, passages
from deltarank.results import count
from deltarank.system import write_text_atomically

CHOOSING_SHARE = SCORING_SHARE = 0.2
"""Of the documents."""

LONGEST_DOCUMENT = 512
"""Tokens that a model reads at once. Activations with gradients take much more memory than `outputs` needs."""


@dataclass(frozen=True)
class Split:
    """Three parts without a common document. Duplicates, which differ at most as `normalise` says, count once.

    fit        documents that the factors are fitted to
    choose     documents that choose the step
    score      documents that are only scored
    """

    fit: tuple[Record, ...]
    choose: tuple[Record, ...]
    score: tuple[Record, ...]


def write_records(path: Path, records: Iterable[Record]) -> None:
    write_text_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def split_records(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    tokens: int,
    context: int,
    seed: int,
    vocabulary: int | None = None,
) -> Split:
    """Splits at random, by document, or by "group" where a record names one. Duplicates count once.

    Args:
        tokens: documents are taken until they have this many tokens, and are enough to be split.
        vocabulary: documents with a token from this id on are left out, because the base cannot read them.

    Built-in passages are left out: they are only scored, as the other text.

    Raises:
        UsageError: (slug "text-short") there are too few documents or tokens.
    """
    built_in = _built_in_contents()
    new = [record for record in records if content_of(record) not in built_in]
    taken = _Taken(built_in=len(records) - len(new))
    for group in _shuffled_groups(new, seed):
        if taken.tokens >= tokens and taken.are_enough:
            break
        taken.add(group, [list(encode(record, tokenizer, context=context)) for record in group], vocabulary)
    if not taken.are_enough:
        raise taken.too_short()
    groups = taken.groups
    choose, score = (max(2, round(share * len(groups))) for share in (CHOOSING_SHARE, SCORING_SHARE))
    parts = groups[choose + score :], groups[:choose], groups[choose : choose + score]
    return Split(*(tuple(record for group in part for record in group) for part in parts))


@dataclass
class _Taken:
    """The groups that are taken, and how many records are left out.

    scored      tokens that are scored, of `tokens` in all
    unscored    records without a token that is scored
    unknown     records with a token that the base does not have
    built_in    records that are built-in passages
    """

    groups: list[list[Record]] = field(default_factory=list)
    tokens: int = 0
    scored: int = 0
    unscored: int = 0
    unknown: int = 0
    built_in: int = 0

    def add(self, group: Sequence[Record], encoded: Sequence[Sequence[Document]], vocabulary: int | None) -> None:
        """Takes the records of a group that can be scored."""
        taken = []
        for record, documents in zip(group, encoded, strict=True):
            if not documents:
                self.unscored += 1
            elif vocabulary is not None and any(max(each.ids) >= vocabulary for each in documents):
                self.unknown += 1
            else:
                taken.append(record)
                self.tokens += sum(len(each.ids) for each in documents)
                self.scored += sum(each.scored_tokens for each in documents)
        if taken:
            self.groups.append(taken)

    @property
    def are_enough(self) -> bool:
        return len(self.groups) >= FEWEST_DOCUMENTS and self.scored >= FEWEST_TOKENS

    def too_short(self) -> UsageError:
        left_out = [
            f"{count(number, 'text is', 'texts are')} left out, because {reason}."
            for number, reason in (
                (self.unscored, "nothing in them can be scored (of a conversation, the assistant's messages are)"),
                (self.built_in, "they are built-in passages, which are only scored"),
                (self.unknown, "they have tokens that the base does not have, such as those of a chat template"),
            )
            if number
        ]
        documents = count(len(self.groups), "different document")
        return UsageError(
            " ".join(
                [f"The calibration texts are too short: {documents}, {self.scored:,} tokens to score.", *left_out]
            ),
            cure=f"Give at least {FEWEST_DOCUMENTS} documents with {FEWEST_TOKENS:,} tokens in all; about 20,000 work "
            "well. --calibrate can be repeated: with files, folders, and the word own for the finetune's own answers.",
            slug="text-short",
        )


def encode(record: Record, tokenizer: Tokenizer, *, context: int) -> list[Document]:
    """The documents of a record, each at most LONGEST_DOCUMENT tokens long."""
    return list(encode_record("document", record, tokenizer, min(LONGEST_DOCUMENT, context)))


def other_records() -> list[Record]:
    """The built-in passages: text of another kind."""
    text = resources.files("deltarank.divergence").joinpath("passages.jsonl").read_text(encoding="utf-8")
    return [{"text": json.loads(line)["text"]} for line in text.splitlines()]


def _built_in_contents() -> set[str]:
    """Of the other text: its documents, and the passages that they would be cut into."""
    texts = [str(record["text"]) for record in other_records()]
    return {content_of({"text": piece}) for text in texts for piece in (text, *passages(text))}


def _shuffled_groups(records: Sequence[Record], seed: int) -> list[list[Record]]:
    """Records of one "group" together, each content once, in an order that depends on them and the seed alone."""
    by_content: dict[str, tuple[tuple[bool, str, str], Record]] = {}
    for record in records:
        content = content_of(record)
        group = record.get("group")
        order = (group is None, str(content if group is None else group), json.dumps(record, sort_keys=True))
        if content not in by_content or order < by_content[content][0]:
            by_content[content] = order, record
    groups: dict[str, list[Record]] = {}
    for (_, key, _), record in by_content.values():
        groups.setdefault(key, []).append(record)
    keys = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).hexdigest())
    return [groups[key] for key in keys]
