"""Where an adapter grows: a folder beside the output, which appears whole or not at all.

OUT.partial/run.json, matrices.jsonl    what it belongs to, and a line for each finished tensor (see `_run_folder`)
OUT.partial/00017.factors               A and B of matrix 17
OUT.partial/whole/                      the adapter while it is put together; renamed to OUT
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deltarank.adapters import CONFIG_FILE, METADATA_FILE
from deltarank.errors import OutputError
from deltarank.results import size
from deltarank.runtime import Record, RunFolder, as_output_error
from deltarank.system import replace_folder


class Staging:
    """The place of one extraction. Use it in a `with`."""

    def __init__(self, output: Path, identity: Mapping[str, Any]) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.partial")
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self._run_folder = RunFolder(self.folder, identity)

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self._run_folder.__exit__()

    @property
    def is_finished(self) -> bool:
        """Whether this very extraction ended before."""
        try:
            about = json.loads((self.output / METADATA_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return isinstance(about, dict) and about.get("identity") == self.identity

    def check_output(self, *, force: bool) -> None:
        """Raises OutputError (slug "output-exists") if something lies there that may not be replaced."""
        found = self.output
        if not found.exists() or (found.is_dir() and not any(found.iterdir())):
            return
        is_adapter = found.is_dir() and (found / CONFIG_FILE).is_file()
        if not (force and is_adapter):
            what = "holds an adapter" if is_adapter else "exists and is no adapter"
            cure = "Give -o another folder, or --force to replace it." if is_adapter else "Give -o another folder."
            raise OutputError(f"{found} {what}.", cure=cure, slug="output-exists")

    def open(self, *, force: bool, room: float) -> list[Record]:
        """Claims the place for an adapter of so many bytes, and returns what an earlier process finished."""
        return self._run_folder.open(force=force, room=room)

    def check_room(self, room: float) -> None:
        """Raises OutputError (slug "output-unwritable") if so many bytes do not fit on the disk."""
        free = shutil.disk_usage(self.folder).free
        if free < room:
            raise OutputError(
                f"{self.folder} has {size(free)} of free disk; making the adapter takes about {size(room)}.",
                cure="Make room, or give -o a folder on another disk.",
                slug="output-unwritable",
            )

    def keep(self, record: Record) -> None:
        self._run_folder.append(record)

    def factors(self, number: int) -> Path:
        """By number: a tensor's name never becomes a path."""
        return self.folder / f"{number:05}.factors"

    @property
    def side_run(self) -> Path:
        """Where the measuring that `--rank auto` needs is kept."""
        return self.folder / "ranks"

    @contextmanager
    def whole(self) -> Iterator[Path]:
        """An empty folder for the adapter's files, which becomes the output when all of them are there."""
        with as_output_error(self.folder):
            whole = self.folder / "whole"
            shutil.rmtree(whole, ignore_errors=True)
            whole.mkdir()
            yield whole
            replace_folder(whole, self.output)
            self._clear()

    def _clear(self) -> None:
        """Only what we made: whoever keeps something else in the folder keeps it."""
        self._run_folder.__exit__()
        shutil.rmtree(self.folder / "ranks", ignore_errors=True)
        for path in (*self.folder.glob("[0-9]*.factors*"), self.folder / "run.json", self.folder / "matrices.jsonl"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()
