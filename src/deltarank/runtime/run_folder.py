"""A run's folder: what was finished is kept, whatever ends the process.

run.json         the inputs and settings: what makes another process's work fit to go on with
matrices.jsonl   a line for each finished tensor, while the run goes on
results.json     at the end, whole; then matrices.jsonl goes
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from deltarank.errors import OutputError
from deltarank.results import Results, listing, size

IDENTITY, LINES, RESULTS = "run.json", "matrices.jsonl", "results.json"

Record = Mapping[str, Any]


class RunFolder:
    """The folder of one run, opened for it alone. Use it in a `with`."""

    def __init__(self, folder: Path, identity: Record) -> None:
        self.folder = folder
        self._identity = identity
        self._file: IO[bytes] | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def open(self, *, force: bool, room: float) -> list[Record]:
        """Claims the folder and returns what an earlier process finished.

        Args:
            force: what another run left here is removed.
            room: bytes that the results will take.

        Raises:
            OutputError: the folder holds something else, another run, or one that is going on; or it cannot be written.
        """
        with as_output_error(self.folder):
            if self.folder.exists() and not self.folder.is_dir():
                raise OutputError(
                    f"{self.folder} is a file.", cure="Give -o a folder that does not exist yet.", slug="output-exists"
                )
            if force:
                self._clear()
            else:
                self._check_identity()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_room(room)
            _write_whole(self.folder / IDENTITY, json.dumps(self._identity, indent=1) + "\n")
            return self._take_over()

    @property
    def finished(self) -> Results | None:
        """The results, if this very run ended before."""
        path = self.folder / RESULTS
        return Results.load(path) if path.is_file() and self._read_identity() == self._identity else None

    def append(self, record: Record) -> None:
        """Keeps a finished tensor: one write, so that a killed process leaves at most a torn last line."""
        assert self._file is not None, "open() comes first"
        with as_output_error(self.folder):
            self._file.write((json.dumps(record, allow_nan=False) + "\n").encode())
            self._file.flush()

    def finish(self, results: Results) -> None:
        """Writes results.json and lets the lines go."""
        with as_output_error(self.folder):
            results.save(self.folder / RESULTS)
            self.__exit__()
            (self.folder / LINES).unlink(missing_ok=True)

    def _clear(self) -> None:
        for name in (RESULTS, LINES, IDENTITY):
            (self.folder / name).unlink(missing_ok=True)

    def _read_identity(self) -> Any:
        try:
            return json.loads((self.folder / IDENTITY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            return {}  # torn or foreign: not ours

    def _check_identity(self) -> None:
        found = self._read_identity()
        if found is None:
            if self.folder.is_dir() and (names := sorted(path.name for path in self.folder.iterdir())):
                raise OutputError(
                    f"{self.folder} exists and holds {listing(names, most=3)}, but no run that could go on.",
                    cure="Give -o another folder, or --force to write into this one.",
                    slug="output-exists",
                )
        elif found != self._identity:
            changed = differences(found, self._identity)
            raise OutputError(
                f"{self.folder} holds another run: {listing(changed)}.",
                cure="Give -o another folder, or --force to replace that run.",
                slug="run-differs",
            )

    def _check_room(self, room: float) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < room:
            raise OutputError(
                f"{self.folder} has {size(free)} of free disk; the results take about {size(room)}.",
                cure="Make room, or give -o a folder on another disk.",
                slug="output-unwritable",
            )

    def _take_over(self) -> list[Record]:
        """Reads the finished lines, cuts off a torn one, and goes on behind them."""
        self._file = (self.folder / LINES).open("a+b", buffering=0)
        _claim(self._file, self.folder)
        self._file.seek(0)
        records: list[Record] = []
        good = 0
        for line in self._file.read().splitlines(keepends=True):
            record = _parsed(line)
            if record is None:
                break
            records.append(record)
            good += len(line)
        self._file.truncate(good)
        return records


def _parsed(line: bytes) -> Record | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _claim(file: IO[bytes], folder: Path) -> None:
    """One process a folder, where the system has such locks; they go with the process, however it ends."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"another process is writing to {folder}.",
            cure="Wait for it, or give -o another folder.",
            slug="output-busy",
        ) from None
    except OSError:
        return  # a file system without locks


def differences(found: Any, wanted: Record) -> list[str]:
    """Names of what changed, for a person."""
    if not isinstance(found, dict):
        return ["not one of deltarank's"]
    changed = []
    for key in sorted({*found, *wanted}):
        before, after = found.get(key), wanted.get(key)
        if before == after:
            continue
        if key == "given" and isinstance(before, dict) and isinstance(after, dict):
            # Hashes of files, which tell a person nothing.
            names = (name for name in sorted({*before, *after}) if before.get(name) != after.get(name))
            changed += [f"the {name} changed" if name in ("texts", "prompts") else f"{name} changed" for name in names]
        elif isinstance(before, dict) and isinstance(after, dict):
            changed += [
                f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
                for name in sorted({*before, *after})
                if before.get(name) != after.get(name)
            ]
        else:
            changed.append(f"the {key} changed" if key in ("base", "finetune") else f"{key} was {before!r}")
    return [each if len(each) < 200 else each[:200] + "..." for each in changed] or ["it cannot be read"]


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


@contextmanager
def as_output_error(folder: Path) -> Iterator[None]:
    """Turns an OSError into an OutputError (slug "output-unwritable") with a cure."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}.",
            cure="Give -o a folder that you may write to, on a disk with enough space. Finished matrices are kept: "
            "repeat the same command to resume.",
            slug="output-unwritable",
        ) from error
