"""The checkpoints that a job reads: how they are named, and how a pair of them is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypedDict

from deltarank.adapters import open_finetune
from deltarank.checkpoints import Checkpoint, check_fetch_mode, open_checkpoint, with_one_vocabulary
from deltarank.runtime.progress import ProgressListener
from deltarank.system import Default

Ref = str | os.PathLike[str]
"""A folder, a file of weights, or a Hub id: `org/name`, `org/name@revision`."""


class InputKeywords(TypedDict, total=False):
    """How the models of a job are found.

    base_revision  branch, tag or commit of the base on the Hub
    revision       branch, tag or commit of the finetune on the Hub
    fetch          for a model that is not in the Hub's cache: "download", "stream" (read by byte ranges, not stored),
                   or "auto", as the free disk space allows; the numbers are the same
    """

    base_revision: str | None
    revision: str | None
    fetch: str


@dataclass(frozen=True)
class ModelRef:
    """A checkpoint as the user names it."""

    ref: Ref
    revision: str | None = None

    def open(self, fetch: str, progress: ProgressListener) -> Checkpoint:
        """Reads and checks the headers. Close the checkpoint, or use it in a `with`.

        Raises:
            UsageError, CheckpointError, HeaderError: see `deltarank.checkpoints.open_checkpoint`.
        """
        return open_checkpoint(self.ref, revision=self.revision, fetch=fetch, on_note=progress.noted)

    def open_finetune(self, base: Checkpoint, fetch: str, progress: ProgressListener) -> Checkpoint:
        """As `open`, of a finetune of `base`, which may be a LoRA adapter on it. Close it before the base.

        Raises:
            UsageError, CheckpointError, HeaderError, AdapterError: it cannot be read.
        """
        return open_finetune(self.ref, base, revision=self.revision, fetch=fetch, on_note=progress.noted)


@dataclass(frozen=True)
class PairRefs:
    """The base and the finetune as the user names them, and how a model of the Hub is fetched."""

    base: ModelRef
    finetune: ModelRef
    fetch: str

    @classmethod
    def of(
        cls,
        base: Ref,
        finetune: Ref,
        *,
        base_revision: str | None = None,
        revision: str | None = None,
        fetch: str = Default.FETCH,
    ) -> Self:
        return cls(ModelRef(base, base_revision), ModelRef(finetune, revision), check_fetch_mode(fetch))

    @contextmanager
    def open(self, progress: ProgressListener) -> Iterator[tuple[Checkpoint, Checkpoint]]:
        """Opens both; the finetune may be a LoRA adapter on the base.

        Raises:
            UsageError, CheckpointError, HeaderError, AdapterError: one of them cannot be read.
        """
        self.announce(progress)
        with self.base.open(self.fetch, progress) as stored:
            # Every job, and the reader of an adapter, then has the same names for the base's tensors.
            base = with_one_vocabulary(stored, stored)
            with self.finetune.open_finetune(base, self.fetch, progress) as finetune:
                yield base, finetune

    def announce(self, progress: ProgressListener) -> None:
        """Reports that they are opened."""
        progress.opening([str(each.ref) for each in (self.base, self.finetune)])

    def without_download(self) -> Self:
        """For a dry run: headers are read over the network, and no model is downloaded."""
        return type(self)(self.base, self.finetune, "stream")
