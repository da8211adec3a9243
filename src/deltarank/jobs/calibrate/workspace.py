"""The folder beside the output in which a calibrated adapter is made. The output appears whole or not at all.

OUT.calibrating/run.json           inputs and options: it is resumed only if they are equal
OUT.calibrating/adapters/plain     the plain adapter
OUT.calibrating/adapters/calibrated  the calibrated one; moved to OUT at the end
OUT.calibrating/own-answers.jsonl  what the finetune answered
OUT.calibrating/teacher/           the finetune's predictions
OUT.calibrating/training.pt        the state of the training after its last look
OUT.calibrating/held-out.jsonl, other-text.jsonl, scores/   what is scored at the end
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from deltarank.adapters import CONFIG_FILE, METADATA_FILE
from deltarank.errors import OutputError
from deltarank.jobs.extract import ExtractedAdapter
from deltarank.runtime import RunFolder, as_output_error
from deltarank.system import replace_folder


class Workspace:
    """The working folder of one calibration. Use it in a `with`."""

    def __init__(self, output: Path, identity: dict[str, Any]) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.calibrating")
        self.identity_hash = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._run_folder = RunFolder(self.folder, identity)
        self.adapters = self.folder / "adapters"
        self.plain, self.calibrated = self.adapters / "plain", self.adapters / "calibrated"
        self.own_answers = self.folder / "own-answers.jsonl"
        self.teacher, self.scores = self.folder / "teacher", self.folder / "scores"
        self.training, self.trained = self.folder / "training.pt", self.folder / "trained.safetensors"
        self.held_out, self.other_text = self.folder / "held-out.jsonl", self.folder / "other-text.jsonl"

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self._run_folder.__exit__()

    @property
    def is_finished(self) -> bool:
        """Whether the output is the adapter of this calibration."""
        try:
            metadata = json.loads((self.output / METADATA_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(metadata, dict) and metadata.get("identity") == self.identity_hash

    def open(self, *, force: bool) -> None:
        """Locks the folder, and refuses an output that may not be replaced."""
        self._check_output(force=force)
        if force:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._run_folder.open(force=force, needed_bytes=0.0)
        self.adapters.mkdir(exist_ok=True)

    def publish(self, adapter: ExtractedAdapter) -> None:
        """Moves the adapter to the output, and removes everything else."""
        del adapter
        with as_output_error(self.folder):
            replace_folder(self.calibrated, self.output)
            self._run_folder.__exit__()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _check_output(self, *, force: bool) -> None:
        output = self.output
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
        if not (force and (output / CONFIG_FILE).is_file()):
            raise OutputError(
                f"{output} already exists and is another adapter or no adapter.",
                cure="Choose another folder with -o; --force replaces an adapter.",
                slug="output-exists",
            )
