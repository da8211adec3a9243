"""What `verify` found, as JSON and back."""

import json
import math
from pathlib import Path

import pytest

from deltarank.errors import ResultsError
from deltarank.results import Verification
from unit.results.whole_results import VERIFICATION


def test_json_gives_back_an_equal_verification(tmp_path: Path) -> None:
    (tmp_path / "verify.json").write_text(VERIFICATION.to_json())
    found = Verification.load(tmp_path / "verify.json")

    assert found == VERIFICATION
    assert found.to_json() == VERIFICATION.to_json()


def test_ratios_and_sums_are_computed_again_never_read() -> None:
    data = json.loads(VERIFICATION.to_json())
    data["whole"]["energy"] = data["tensors"][0]["share_lost"] = 99.0
    found = Verification.from_json(json.dumps(data))

    assert found.whole.energy == 5.0
    assert found.tensors[0].energies.share_lost == 0.25


@pytest.mark.parametrize(
    ("field", "value"), [("energy", -1.0), ("lost", "1"), ("energy", 1e301), ("rank", True), ("inner", math.inf)]
)
def test_a_wrong_row_is_refused(field: str, value: object) -> None:
    data = json.loads(VERIFICATION.to_json())
    data["tensors"][0][field] = value
    with pytest.raises(ResultsError) as caught:
        Verification.from_json(json.dumps(data))

    assert caught.value.slug == "results-unreadable"


def test_ratios_that_no_number_can_say_are_refused() -> None:
    data = json.loads(VERIFICATION.to_json())
    data["tensors"][0] |= {"energy": 1e-320, "lost": 1e300}
    with pytest.raises(ResultsError, match="no finite ratios"):
        Verification.from_json(json.dumps(data))
