"""The folder of an unfinished job, RUN/outputs.partial: what is stored so that the job can be resumed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from deltarank.runtime import RunFolder


@dataclass(frozen=True)
class PartialFolder:
    """Where the files of a job are. Their names are numbers: no name of a tensor or document becomes a path."""

    path: Path

    def factors(self, matrix: int) -> Path:
        """The file for the factors of a matrix."""
        return self.path / f"{matrix:05}.factors"

    @property
    def reference(self) -> Path:
        """The folder for the finetune's predictions."""
        return self.path / "reference"

    def scores(self, candidate: int, document: int) -> Path:
        """The file for the scores of a candidate on a document.

        The candidates of a job are numbered first; then, where parts are truncated, all parts at once and each part.
        """
        return self.path / f"scores-{candidate:03}" / f"{document:06}.npz"

    @property
    def has_scores(self) -> bool:
        """Whether any document was scored."""
        return any(self.path.glob("scores-*/*.npz"))

    def remove(self) -> None:
        """Removes the files of the job, and the folder if nothing else is in it."""
        for inner in (self.reference, *self.path.glob("scores-[0-9]*")):
            shutil.rmtree(inner, ignore_errors=True)
        for file in self.path.glob("[0-9]*.factors*"):
            file.unlink(missing_ok=True)
        RunFolder(self.path, {}).clear()
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()
