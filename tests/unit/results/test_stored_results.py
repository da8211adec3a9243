"""What `outputs`, `verify` and `which-base` found, as JSON and back."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltarank.errors import ResultsError
from deltarank.results import BaseChoice, BaseKind, Outputs, StoredResult, Verification
from refusals import refused
from unit.results.whole_results import CHOICE, OUTPUTS, VERIFICATION

STORED: dict[str, StoredResult] = {"outputs": OUTPUTS, "verification": VERIFICATION, "choice": CHOICE}


def changed(stored: StoredResult, path: list[str | int], value: object) -> str:
    data = json.loads(stored.to_json())
    holder: Any = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_a_file_gives_back_an_equal_result_byte_for_byte(stored: StoredResult, tmp_path: Path) -> None:
    (tmp_path / "stored.json").write_text(stored.to_json())
    found = type(stored).load(tmp_path / "stored.json")

    assert found == stored
    assert found.to_json() == stored.to_json()


def test_fields_of_later_versions_are_ignored() -> None:
    plain = OUTPUTS.to_plain() | {"aura": 3}
    plain["candidates"][0]["logits"][0]["kld"]["p9999"] = 1.0

    assert Outputs.from_json(json.dumps(plain)) == OUTPUTS


@pytest.mark.parametrize(
    ("stored", "path", "value", "message"),
    [
        ("outputs", ["reference"], 1, "Not the outputs"),
        ("outputs", ["texts"], 3, "Not the outputs"),
        ("outputs", ["candidates", 1, "rank"], "64", r"`int \| null`, got `str` - at `\$\.candidates\[1\]\.rank`"),
        ("verification", ["tensors", 0, "energy"], -1.0, "energy"),
        ("verification", ["tensors", 0, "energy"], 1e301, "energy"),
        ("verification", ["tensors", 0, "lost"], "1", "lost"),
        ("verification", ["tensors", 0, "rank"], True, "rank"),
        ("verification", ["tensors", 0, "inner"], math.inf, "JSON is malformed"),
        ("verification", ["tensors", 0, "energy"], 1e-320, "no finite ratios"),
        ("choice", ["candidates"], [], "no candidate was compared"),
        ("choice", ["candidates"], ["x"], "candidates"),
        ("choice", ["kind"], "mine", "kind"),
        ("choice", ["seed"], "1", "seed"),
    ],
)
def test_a_wrong_field_is_refused(stored: str, path: list[str | int], value: object, message: str) -> None:
    whole = STORED[stored]
    with refused("results-unreadable", ResultsError, match=message):
        type(whole).from_json(changed(whole, path, value))


def test_figures_are_computed_again_and_not_read() -> None:
    verification = Verification.from_json(changed(VERIFICATION, ["whole", "energy"], 99.0))
    choice = BaseChoice.from_json(changed(CHOICE, ["base"], "org/far"))

    assert json.loads(CHOICE.to_json())["base"] == "org/one"
    assert verification.whole.energy == 5.0
    assert verification.tensors[0].energies.share_lost == 0.25
    assert choice.base == CHOICE.candidates[2]


@pytest.mark.parametrize("kind", [BaseKind.NONE, BaseKind.TOO_CLOSE])
def test_without_an_answer_there_is_no_base(kind: BaseKind) -> None:
    assert replace(CHOICE, kind=kind).base is None


def test_an_unknown_candidate_is_named() -> None:
    with pytest.raises(KeyError, match="rank 9"):
        OUTPUTS.candidate("rank 9")
