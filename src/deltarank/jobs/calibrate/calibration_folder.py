"""The folder beside the output in which a calibrated adapter is made. The output appears whole or not at all.

OUT.calibrating/run.json             inputs and options: it is resumed only if they are equal
OUT.calibrating/adapters/plain       the plain adapter
OUT.calibrating/adapters/calibrated  the calibrated one; moved to OUT at the end
OUT.calibrating/own-answers/         what the finetune answered
OUT.calibrating/teacher/             the finetune's predictions
OUT.calibrating/training.pt          the state of the training after its last look
OUT.calibrating/held-out.jsonl, other-text.jsonl, scores/    what is scored at the end
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deltarank.adapters import METADATA_FILE, WEIGHTS_FILE
from deltarank.jobs.extract import check_output, folder_beside, is_made_from
from deltarank.runtime import RunFolder, as_output_error, read_identity
from deltarank.system import replace_folder, unfinished_copies


class CalibrationFolder:
    """The working folder of one calibration. Use it in a `with`."""

    def __init__(self, output: Path, identity: dict[str, Any]) -> None:
        self.output = output
        self.folder = folder_beside(output, ".calibrating")
        self.identity_hash = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._run_folder, self._identity, self._is_open = RunFolder(self.folder, identity), identity, False
        self.adapters = self.folder / "adapters"
        self.plain, self.calibrated = self.adapters / "plain", self.adapters / "calibrated"
        self.own_answers = self.folder / "own-answers"
        self.teacher, self.scores = self.folder / "teacher", self.folder / "scores"
        self.training, self.trained = self.folder / "training.pt", self.folder / "trained.safetensors"
        self.held_out, self.other_text = self.folder / "held-out.jsonl", self.folder / "other-text.jsonl"

    def __enter__(self) -> CalibrationFolder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """After an error before anything was computed, such as a text that is too short, nothing stays."""
        if kind is not None and self._is_open and not self._has_work:
            with suppress(OSError):
                self._clear()
        self._run_folder.__exit__()

    @property
    def _has_work(self) -> bool:
        """Whether anything is worth keeping: answers of the finetune, a part of the plain adapter, or what follows."""
        return any(self.own_answers.glob("*.jsonl")) or any(self.adapters.glob("*"))

    @property
    def _is_of_another(self) -> bool:
        """Whether another calibration was begun here that left nothing worth keeping."""
        found = read_identity(self.folder)
        settings = found.get("settings") if isinstance(found, dict) else None
        is_calibration = isinstance(settings, dict) and "calibrate" in settings
        return is_calibration and found != self._identity and not self._has_work

    @property
    def is_finished(self) -> bool:
        """Whether the output is the adapter of this calibration."""
        return is_made_from(self.output, self.identity_hash)

    def check(self, *, force: bool, needed_bytes: float) -> None:
        """Raises OutputError if the output or the working folder cannot be written. Writes nothing."""
        check_output(self.output, force=force)
        with self.writing():
            force = force or self._is_of_another
            self._run_folder.check(force=force, needed_bytes=needed_bytes - self._written_bytes)

    def open(self, *, force: bool, needed_bytes: float) -> None:
        """Locks the folder. Raises OutputError as `check` does, and writes nothing then."""
        self.check(force=force, needed_bytes=needed_bytes)
        force = force or self._is_of_another
        self._run_folder.open(force=force, needed_bytes=0.0)
        self._is_open = True
        with self.writing():
            if force:
                self._remove_files()
            self.adapters.mkdir(exist_ok=True)

    @property
    def is_extracted(self) -> bool:
        """Whether the plain adapter is there: it appears whole or not at all."""
        return (self.plain / METADATA_FILE).is_file()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raises OutputError (slug "output-unwritable") for what cannot be written within it."""
        with as_output_error(self.folder):
            yield

    def write_adapter(self, *, is_trained: bool) -> None:
        """Writes the calibrated adapter: the plain one, to the bit, with the trained factors if there are any.

        One that is there and the same stays: what was scored of it by a process that was killed is used again.
        """
        weights = self.trained if is_trained else self.plain / WEIGHTS_FILE
        written = self.calibrated / WEIGHTS_FILE
        partial = self.calibrated.with_name("calibrated.partial")
        with self.writing():
            if written.is_file() and filecmp.cmp(weights, written, shallow=False):
                return
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(self.plain, partial)
            shutil.copyfile(weights, partial / WEIGHTS_FILE)
            replace_folder(partial, self.calibrated)

    def publish(self) -> None:
        """Moves the adapter to the output, and removes what was written here and nothing else."""
        with self.writing():
            replace_folder(self.calibrated, self.output)
            self._clear()

    def remove_leftovers(self) -> None:
        """Removes what a process left here that was killed after it had published the adapter."""
        if read_identity(self.folder) == self._identity:
            self._run_folder.open(force=False, needed_bytes=0.0)
            with self.writing():
                self._clear()

    @property
    def _written_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def _clear(self) -> None:
        self._remove_files()
        self._run_folder.__exit__()
        self._run_folder.clear()
        with suppress(OSError):
            self.folder.rmdir()

    def _remove_files(self) -> None:
        for folder in (self.adapters, self.own_answers, self.teacher, self.scores):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.training, self.trained, self.held_out, self.other_text):
            for each in (file, *unfinished_copies(file)):
                each.unlink(missing_ok=True)
