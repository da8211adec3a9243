"""What `extract` writes about an adapter, read again."""

import json
from pathlib import Path
from typing import Any

import pytest

from deltarank.adapters import METADATA_FILE, Budget, LeftOut
from deltarank.errors import ResultsError
from deltarank.jobs.extract import AdapterMatrix, ExtractedAdapter
from deltarank.results import Loss, Outcome, Reference, WrittenLoss
from refusals import refused

LOSS = Loss(8, 0.1, 0.2, 0.5, 0.75)
WRITTEN = WrittenLoss(8, 0.2, 1.2, 1.5, -1.25)


@pytest.fixture
def adapter(tmp_path: Path) -> ExtractedAdapter:
    made = ExtractedAdapter(
        folder=tmp_path,
        base=Reference("org/base", "abc", {"model.safetensors": 10}),
        finetune=Reference("org/tuned"),
        rank=8,
        server="portable",
        dtype="bfloat16",
        matrices=(AdapterMatrix("a.weight", "a", 0, "a", (9, 9), Outcome.MEASURED, 8, 4.0, 9.0, (LOSS,), WRITTEN),),
        budget=Budget(0.75, 0.125, 0.0, 0.125, (LeftOut("n", "norm", "vLLM cannot load norms", 0.125),), 8.0),
        settings={"command": None},
        notes=("a note",),
        tool_version="0.1.0",
        created="2026-11-24T00:00:00+00:00",
        identity="x",
    )
    (tmp_path / METADATA_FILE).write_text(made.to_json())
    return made


def changed(adapter: ExtractedAdapter, **changes: Any) -> Path:
    path = adapter.folder / METADATA_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return adapter.folder


def test_it_comes_back_equal_and_is_written_again_byte_for_byte(adapter: ExtractedAdapter) -> None:
    found = ExtractedAdapter.load(adapter.folder)

    assert found == adapter
    assert found.to_json() == (adapter.folder / METADATA_FILE).read_text()


def test_fields_of_later_versions_are_ignored(adapter: ExtractedAdapter) -> None:
    matrices = [json.loads(adapter.to_json())["matrices"][0] | {"colour": "red"}]

    assert ExtractedAdapter.load(changed(adapter, mood="good", matrices=matrices)) == adapter


@pytest.mark.parametrize(
    "changes",
    [
        {"matrices": ["x"]},
        {"rank": "8"},
        {"base": {}},
        {"budget": None},
        {"budget": {"kept": 1.0, "truncated": 1e308, "rounded": 0.0, "left_out": 0.0}},
        {"server": "abacus"},
        {"format_version": 2},
        {"notes": 1},
    ],
)
def test_what_does_not_fit_is_refused_with_the_name_of_the_file(
    adapter: ExtractedAdapter, changes: dict[str, Any]
) -> None:
    with refused("results-unreadable", ResultsError, match=METADATA_FILE):
        ExtractedAdapter.load(changed(adapter, **changes))
