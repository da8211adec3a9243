"""The folder of a run, which keeps finished work whatever ends the process, so that the run can be resumed.

run.json         inputs and options: a run is resumed only if they are equal
matrices.jsonl   one line for each finished tensor, while the run lasts
results.json     written whole at the end; matrices.jsonl is removed then
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from deltarank.errors import OutputError
from deltarank.results import Results, listing, parse_record, size
from deltarank.system import unfinished_copies, write_text_atomically

IDENTITY, RECORDS, RESULTS = "run.json", "matrices.jsonl", "results.json"

Record = Mapping[str, Any]


class RunFolder:
    """The folder of one run. One process at a time may open it. Use it in a `with`."""

    def __init__(
        self, folder: Path, identity: Record, *, records: str = RECORDS, continues: Sequence[Record] = ()
    ) -> None:
        """
        Args:
            records: the name of the file of records.
            continues: identities of other runs that this one takes up, with their records.
        """
        self.folder = folder
        self._records = folder / records
        self._identity = identity
        self._continues = continues
        self._file: IO[bytes] | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def open(self, *, force: bool, needed_bytes: float) -> list[Record]:
        """Locks the folder and returns the records of an earlier process.

        Args:
            force: removes what another run left here.
            needed_bytes: bytes that the results will take.

        Raises:
            OutputError: the folder holds something else, another run, or one that another process is writing; or it
                cannot be written.
        """
        self.check(force=force)
        with as_output_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._records.exists():
                self._lock_records()  # before anything is removed: another process may be writing
            if force:
                self._forget()
            self.check_disk_space(needed_bytes)
            write_text_atomically(self.folder / IDENTITY, json.dumps(self._identity, indent=1) + "\n")
            self._lock_records()
            for path in unfinished_copies(self.folder / IDENTITY):
                path.unlink(missing_ok=True)
            return self._read_records()

    def check(self, *, force: bool, needed_bytes: float = 0.0) -> None:
        """Raises OutputError as `open` does, and writes nothing."""
        with as_output_error(self.folder):
            parents = self.folder.absolute(), *self.folder.absolute().parents
            existing = next(path for path in parents if path.exists())
            if existing == parents[0] and not existing.is_dir():
                raise OutputError(
                    f"{self.folder} is a file.",
                    cure="Use -o with a folder, or with a path that does not exist yet.",
                    slug="output-exists",
                )
            if not existing.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            if not os.access(existing, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if not force:
                self._check_identity()
            self._check_free(existing, needed_bytes)

    @property
    def finished(self) -> Results | None:
        """The results, if this run was finished before; else None."""
        path = self.folder / RESULTS
        with as_output_error(self.folder):
            return Results.load(path) if path.is_file() and read_identity(self.folder) == self._identity else None

    def check_disk_space(self, needed_bytes: float) -> None:
        """Raises OutputError (slug "output-unwritable") if the disk has less than `needed_bytes` bytes left."""
        self._check_free(self.folder, needed_bytes)

    def _check_free(self, existing: Path, needed_bytes: float) -> None:
        free = shutil.disk_usage(existing).free
        if free < needed_bytes:
            raise OutputError(
                f"Not enough disk space for {self.folder}: {size(free)} free, about {size(needed_bytes)} needed.",
                cure=f"Free some space, or choose another disk with -o.{self._kept_sentence}",
                slug="output-unwritable",
            )

    @property
    def _kept_sentence(self) -> str:
        """What is kept of an earlier process. Nothing after --force."""
        if read_identity(self.folder) != self._identity:
            return ""
        return f" What is finished is kept in {self.folder}: without --force, the same command resumes it."

    def append(self, record: Record) -> None:
        """Adds a record in one write: a killed process leaves at most an incomplete last line."""
        with as_output_error(self.folder):
            self._lock_records()
            assert self._file is not None
            self._file.write((json.dumps(record, allow_nan=False) + "\n").encode())
            self._file.flush()

    def release(self) -> None:
        """Closes the file of the records, and with it the lock. `append` opens it again."""
        self.__exit__()

    def save(self, results: Results) -> None:
        """Writes results.json, whole or not at all."""
        with as_output_error(self.folder):
            results.save(self.folder / RESULTS)

    def finish(self, results: Results) -> None:
        """Writes results.json and removes the records."""
        self.save(results)
        self.end()

    def end(self) -> None:
        """Removes the records: the results are written."""
        with as_output_error(self.folder):
            self.release()
            self._records.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes the results, the records and the identity."""
        for path in (self.folder / RESULTS, self._records, self.folder / IDENTITY):
            path.unlink(missing_ok=True)

    def _check_identity(self) -> None:
        found = read_identity(self.folder)
        if found is None:
            unfinished = unfinished_copies(self.folder / IDENTITY)
            names = (
                [path.name for path in self.folder.iterdir() if path not in unfinished] if self.folder.is_dir() else []
            )
            if names:
                raise OutputError(
                    f"{self.folder} is not empty ({listing(sorted(names), most=3)}) and contains no run to resume.",
                    cure="Choose another folder with -o, or use --force to write into this one.",
                    slug="output-exists",
                )
        elif found not in (self._identity, *self._continues):
            changed = differences(found, self._identity)
            raise OutputError(
                f"{self.folder} already contains a run with other inputs or options: {listing(changed)}.",
                cure="Choose another folder with -o, or use --force to replace that run.",
                slug="run-differs",
            )

    def _forget(self) -> None:
        """As `clear`, of a folder that is locked by this process: the file that has the lock stays."""
        for name in (RESULTS, IDENTITY):
            (self.folder / name).unlink(missing_ok=True)
        if self._file is not None:
            self._file.truncate(0)

    def _lock_records(self) -> None:
        if self._file is None:
            self._file = self._records.open("a+b", buffering=0)
            _lock(self._file, self.folder)

    def _read_records(self) -> list[Record]:
        """Reads the complete lines, and cuts off an incomplete one, so that new records follow them."""
        assert self._file is not None
        self._file.seek(0)
        records: list[Record] = []
        good = 0
        for line in self._file.read().splitlines(keepends=True):
            record = parse_record(line) if line.endswith(b"\n") else None
            if record is None:
                break
            records.append(record)
            good += len(line)
        self._file.truncate(good)
        return records


def _lock(file: IO[bytes], folder: Path) -> None:
    """Keeps other processes out, where the system has such locks. The lock ends with the process."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(
            f"Another process is writing to {folder}.",
            cure="Wait until it has finished, or choose another folder with -o.",
            slug="output-busy",
        ) from None
    except OSError:
        return  # a file system without locks


def read_identity(folder: Path) -> Any:
    """The contents of run.json; None if there is none, {} if it cannot be read."""
    try:
        return json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}


def differences(found: Any, wanted: Record) -> list[str]:
    """The inputs and options that differ between two identities, in words."""
    if not isinstance(found, dict) or not found:
        return ["its run.json cannot be read"]
    changed = []
    for key in sorted({*found, *wanted}):
        before, after = found.get(key), wanted.get(key)
        if before == after:
            continue
        if key == "given" and isinstance(before, dict) and isinstance(after, dict):
            # Hashes of files: only that they differ can be said.
            names = (name for name in sorted({*before, *after}) if before.get(name) != after.get(name))
            changed += [f"the {name} changed" if name in ("texts", "prompts") else f"{name} changed" for name in names]
        elif isinstance(before, dict) and isinstance(after, dict):
            changed += [
                f"{name}: {_in_words(before.get(name))} in that run, {_in_words(after.get(name))} now"
                for name in sorted({*before, *after})
                if before.get(name) != after.get(name)
            ]
        elif key in ("given", "weights"):
            what = "calibration texts" if key == "given" else key
            changed.append(f"{what}: {_some(before)} in that run, {_some(after)} now")
        elif key != "calibration" or "given" not in {*found, *wanted}:
            is_model = key in ("base", "finetune")
            changed.append(f"the {key} changed" if is_model else f"{key}: {_in_words(before)} in that run")
    return [each if len(each) < 200 else each[:200] + "..." for each in changed] or ["its run.json cannot be read"]


def _in_words(value: object) -> str:
    """A list as its items, a switch as yes or no."""
    if isinstance(value, list | tuple):
        return listing([_in_words(each) for each in value], most=20)
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _some(texts: object) -> str:
    return "some" if texts else "none"


@contextmanager
def as_output_error(folder: Path) -> Iterator[None]:
    """Turns an OSError into an OutputError (slug "output-unwritable") with a cure."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"Cannot write {folder}: {error.strerror or error}.",
            cure="Use -o with a folder that you may write to, on a disk with enough space. Finished work is kept: "
            "repeat the same command to resume.",
            slug="output-unwritable",
        ) from error
