"""The folder beside the output in which an adapter is made. The output appears whole or not at all.

OUT.partial/run.json, matrices.jsonl    inputs and options, and a line for each finished tensor (see `RunFolder`)
OUT.partial/00017.factors               A and B of matrix 17
OUT.partial/ranks/                      the comparison that `--rank auto` needs
OUT.partial/whole/                      the adapter while its files are written; renamed to OUT
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deltarank.jobs.extract.output_folder import check_output, folder_beside, is_made_from
from deltarank.jobs.extract.result import AdapterMatrix
from deltarank.results import to_plain
from deltarank.runtime import RETRIED_OUTCOMES, Record, RunFolder, as_output_error


class StagingFolder:
    """The staging folder of one extraction. Use it in a `with`."""

    def __init__(self, output: Path, identity: Record) -> None:
        self.output = output
        self.folder = folder_beside(output, ".partial")
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._run_folder = RunFolder(self.folder, identity)

    def __enter__(self) -> StagingFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._run_folder.__exit__()

    @property
    def is_finished(self) -> bool:
        """Whether the output is the adapter of this extraction."""
        return is_made_from(self.output, self.identity)

    def check_output(self, *, force: bool) -> None:
        """Raises OutputError (slug "output-exists") if the output holds something that may not be replaced."""
        check_output(self.output, force=force)

    def check(self, *, force: bool, needed_bytes: float) -> None:
        """Raises OutputError if the output or the staging folder cannot be written. Writes nothing."""
        self.check_output(force=force)
        self._run_folder.check(force=force, needed_bytes=needed_bytes)

    def open(self, *, force: bool) -> list[Record]:
        """Locks the folder and returns the records of an earlier process; see `RunFolder.open`."""
        return self._run_folder.open(force=force, needed_bytes=0.0)

    def check_disk_space(self, needed_bytes: float) -> None:
        """Raises OutputError (slug "output-unwritable") if the disk has less than `needed_bytes` bytes left."""
        self._run_folder.check_disk_space(needed_bytes)

    def append(self, record: Record) -> None:
        self._run_folder.append(record)

    def keep(self, matrix: AdapterMatrix) -> None:
        """Adds the record of a matrix, unless it may succeed next time."""
        if matrix.outcome not in RETRIED_OUTCOMES:
            self.append(to_plain(matrix))

    def factors_paths(self, names: Iterable[str]) -> Callable[[str], Path]:
        """The files of the factors, by tensor name. They are numbered: a tensor's name never becomes a path."""
        numbers = {name: number for number, name in enumerate(names)}
        return lambda name: self.folder / f"{numbers[name]:05}.factors"

    @property
    def rank_search(self) -> Path:
        """The folder of the comparison that `--rank auto` needs."""
        return self.folder / "ranks"

    @contextmanager
    def whole(self) -> Iterator[Path]:
        """An empty folder for the adapter's files, which becomes the output when the block ends without an error."""
        with as_output_error(self.folder):
            whole = self.folder / "whole"
            shutil.rmtree(whole, ignore_errors=True)
            whole.mkdir()
            try:
                yield whole
            except BaseException:  # what is left must not look like an adapter
                shutil.rmtree(whole, ignore_errors=True)
                raise
            self._publish(whole)

    def _publish(self, whole: Path) -> None:
        replaced = self.folder / "replaced"
        shutil.rmtree(replaced, ignore_errors=True)
        if self.output.is_dir() and any(self.output.iterdir()):
            self.output.rename(replaced)
        elif self.output.is_dir():
            self.output.rmdir()
        try:
            whole.rename(self.output)
        except OSError:
            with suppress(OSError):
                replaced.rename(self.output)
            raise
        self._clear()

    def _clear(self) -> None:
        """Removes what was written here and nothing else: other files of the user stay."""
        self._run_folder.__exit__()
        for inner in ("replaced", "ranks"):
            shutil.rmtree(self.folder / inner, ignore_errors=True)
        for path in (*self.folder.glob("[0-9]*.factors*"), self.folder / "run.json", self.folder / "matrices.jsonl"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()
