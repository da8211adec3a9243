"""The texts that were asked for: files, and the finetune's own answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deltarank.divergence import Document, Tokenizer
from deltarank.jobs.calibrate.documents import LONGEST_DOCUMENT, Split, encode, split_records
from deltarank.jobs.calibrate.options import OWN, CalibrateOptions
from deltarank.jobs.calibrate.own_answers import OwnAnswers, answers_at_once
from deltarank.jobs.calibrate.texts import Record, fingerprint, read_records_of
from deltarank.models import ModelSkeleton
from deltarank.results import count
from deltarank.system import user_path


@dataclass(frozen=True)
class CalibrationTexts:
    """The texts of one calibration.

    tokenizer   of the finetune
    """

    options: CalibrateOptions
    base: ModelSkeleton
    finetune: ModelSkeleton
    tokenizer: Tokenizer

    @cached_property
    def answers(self) -> OwnAnswers | None:
        """None if they are not asked for, or if no prompt fits and there are files."""
        asked = self._asked_answers
        return None if asked is None or (self._paths and not asked.prompts) else asked

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are used, as they were given."""
        return tuple(text for text in self.options.calibrate if text != OWN or self.answers)

    @property
    def notes(self) -> list[str]:
        asked = self._asked_answers
        if asked is None:
            return []
        without = "Only the files are used, and no answers of the finetune."
        return [*asked.notes, *([] if self.answers else [without])]

    def check(self) -> None:
        """Raises UsageError if the texts are too short, as far as it is known before the finetune answers."""
        if self.answers is None:
            self.split([])
        elif not self._paths:
            self.answers.check()

    def split(self, answers: Sequence[Record]) -> Split:
        """The documents of the files and of these answers, in three parts. Errors as `split_records`."""
        return self._split_files if not answers else self._split([*self._of_files, *answers])

    def encode(self, records: Sequence[Record]) -> list[Document]:
        """The documents of records, in parts of at most `most_tokens`."""
        return [each for record in records for each in encode(record, self.tokenizer, context=self.context)]

    def read_by_finetune(self, records: int, parts: int) -> str:
        """The sentence on how many documents the finetune reads, and in how many parts."""
        in_parts = f", in {parts:,} parts of at most {self.most_tokens:,} tokens" if parts != records else ""
        return f"The finetune reads {count(records, 'document')}{in_parts}."

    @property
    def context(self) -> int:
        return min(self.base.context, self.finetune.context)

    @property
    def most_tokens(self) -> int:
        """That are read at once."""
        return min(LONGEST_DOCUMENT, self.context)

    @cached_property
    def _of_files(self) -> list[Record]:
        return read_records_of(self._paths)

    @cached_property
    def _split_files(self) -> Split:
        return self._split(self._of_files)

    def _split(self, records: Sequence[Record]) -> Split:
        return split_records(
            records,
            self.tokenizer,
            tokens=self.options.calibration_tokens,
            context=self.context,
            seed=self.options.seed,
            vocabulary=self.base.vocabulary,
        )

    @cached_property
    def _asked_answers(self) -> OwnAnswers | None:
        if OWN not in self.options.calibrate:
            return None
        at_once = answers_at_once(self.finetune)
        return OwnAnswers(self.tokenizer, self.options.calibration_tokens, self.context, self.options.seed, at_once)

    @property
    def _paths(self) -> list[Path]:
        return paths_of(self.options)


def paths_of(options: CalibrateOptions) -> list[Path]:
    """The files and folders among the texts."""
    return [user_path(text) for text in options.calibrate if text != OWN]


def texts_identity(options: CalibrateOptions) -> tuple[str, list[str]]:
    """A hash of the files, and of what kind the texts are. Raises UsageError (slug "text-not-found")."""
    paths = paths_of(options)
    kinds = [*([OWN] if OWN in options.calibrate else []), *(["files"] if paths else [])]
    return fingerprint(paths), kinds
