"""The folder of a fleet: its own files, and a folder for the run of each finetune.

run.json        base and options: a fleet is continued only if they are equal
matrices.jsonl  the names of the finetunes, while the fleet is being measured
fleet.json      written whole at the end, with fleet.csv, and fleet.parquet where pyarrow is installed
NAME/           the run of a finetune, as `compare` writes it
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deltarank.errors import OutputError, ResultsError
from deltarank.jobs.compare import CompareJob
from deltarank.jobs.fleet.finetunes import Listed, key_of
from deltarank.results import Fleet, Results, listing, parse_record
from deltarank.runtime import RECORDS, Record, RunFolder, as_output_error
from deltarank.system import write_atomically, write_text_atomically

_TEXTS = ("name", "reference", "revision", "outcome", "reason", "verdict")
_COUNTS = ("signal_rank", "matrices", "parameters", "rank")
"""Columns of fleet.parquet; the others are floats."""


class FleetFolder:
    """The folder of one fleet. One process at a time may open it. Use it in a `with`.

    Args:
        force: what another fleet left here is replaced.
    """

    def __init__(self, path: Path, identity: Record, *, force: bool) -> None:
        self.path = path
        self.force = force
        self._folder = RunFolder(path, identity)

    def __enter__(self) -> FleetFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.release()

    @cached_property
    def before(self) -> Fleet | None:
        """What was measured before."""
        with suppress(ResultsError):
            if not self.force and (self.path / str(Fleet.file_name)).is_file():
                return Fleet.load(self.path)
        return None

    @cached_property
    def names(self) -> dict[str, str]:
        """The names that were given before, in a fleet that was interrupted, too; by `key_of`."""
        listed = [(each.name, each.reference) for each in (self.before.finetunes if self.before else ())]
        if not self.force:
            listed += [(str(each.get("name")), str(each.get("reference"))) for each in self._records()]
        return {key_of(reference): name for name, reference in listed}

    def run_of(self, listed: Listed, job: CompareJob) -> RunFolder:
        return RunFolder(self.path / listed.name, job.identity)

    def results_before(self, listed: Listed) -> Results | None:
        """The results of a finetune that this fleet measured before."""
        rows = self.before.measured if self.before else ()
        if listed.name in {each.name for each in rows}:
            with suppress(ResultsError):
                return Results.load(self.path / listed.name)
        return None

    def check(self, finetunes: Sequence[Listed]) -> None:
        """Raises OutputError if these cannot be written here, or finetunes that were measured here are missing."""
        self._folder.check(force=self.force)
        given = {each.name for each in finetunes}
        rows = self.before.measured if self.before else ()
        left = [each for each in rows if each.name not in given and (self.path / each.name).is_dir()]
        if left:
            folders = listing([str(self.path / each.name) for each in left], most=3)
            raise OutputError(
                f"{self.path} contains finetunes that are not in this list: "
                f"{listing([each.reference for each in left], most=3)}.",
                cure=f"Repeat the whole list and add to it; or remove {folders}; or choose another folder with -o.",
                slug="fleet-list-differs",
            )

    def open(self, finetunes: Sequence[Listed]) -> None:
        """Locks the folder, and keeps the names of the finetunes.

        Raises:
            OutputError: as `RunFolder.open`.
        """
        named = {record.get("name") for record in self._folder.open(force=self.force, needed_bytes=0)}
        for each in finetunes:
            if each.name not in named:
                self._folder.append({"name": each.name, "reference": each.reference})

    def check_disk_space(self, needed_bytes: float) -> None:
        self._folder.check_disk_space(needed_bytes)

    def finish(self, fleet: Fleet) -> None:
        """Writes the results of the fleet, each file whole or not at all."""
        with as_output_error(self.path):
            write_text_atomically(self.path / "fleet.csv", fleet.to_csv())
            if find_spec("pyarrow"):
                with write_atomically(self.path / "fleet.parquet") as partial:
                    _write_parquet(fleet.rows(), partial)
            write_text_atomically(self.path / str(Fleet.file_name), fleet.to_json())
        self._folder.end()

    def _records(self) -> list[dict[str, Any]]:
        path = self.path / RECORDS
        lines = path.read_bytes().splitlines() if path.is_file() else []
        return [record for line in lines if (record := parse_record(line)) is not None]


def _write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """With the columns of fleet.csv, whose types are the same in every fleet."""
    arrow = import_module("pyarrow")
    types = {**dict.fromkeys(_TEXTS, arrow.string()), **dict.fromkeys(_COUNTS, arrow.int64())}
    schema = arrow.schema([(name, types.get(name, arrow.float64())) for name in rows[0]])
    import_module("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows, schema=schema), path)
