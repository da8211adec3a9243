"""An adapter's budget as a picture: its bars by value, and that it is a picture."""

import math
from typing import Any

import pytest

from deltarank.report import adapter_picture
from deltarank.report.page.adapter_poster import MOST_MODULES, _bars

HOSTILE = "evil\u202e\n<script>" + 200 * "x"


def about(*, modules: int = 3, name: str = "mlp.m{}", energy: float = 10.0) -> dict[str, Any]:
    """Each module has 2 of `energy`: half is kept, a quarter truncated, a quarter rounded away."""
    each = {"energy": 2.0, "losses": [{"relative_error": 0.5}], "written": {"relative_error": math.sqrt(0.5)}}
    matrices = [{"module": name.format(i), **each} for i in range(modules)]
    kept, left = modules * 1.0 / energy, 1 - 2 * modules / energy
    budget = {"energy": energy, "kept": kept + left / 2, "kinds": [{"kind": "norms", "tensors": 2, "share": left / 2}]}
    side = {"ref": f"org/{name}"}
    return {"rank": 8, "sentence": "keeps some", "matrices": matrices, "budget": budget, "base": side, "finetune": side}


def test_bars_add_up_to_the_change() -> None:
    bars = {bar.name: bar for bar in _bars(about())}

    assert sum(bar.length for bar in bars.values()) == pytest.approx(1)
    assert bars["mlp.m0"].shares == pytest.approx({"kept": 0.1, "truncated": 0.05, "lost to rounding": 0.05}, rel=1e-9)
    assert bars["carried whole"].shares == pytest.approx({"kept": 0.2})
    assert bars["norms"].shares == pytest.approx({"left out": 0.2})
    assert bars["mlp.m0"].note == "20 %, 50 % of it kept"
    assert bars["norms"].note == "20 %, not in it"


def test_many_modules_are_summed_at_the_end() -> None:
    bars = _bars(about(modules=40, energy=80.0))

    assert len(bars) == MOST_MODULES
    assert bars[-1].name == "27 more modules"
    assert sum(bar.length for bar in bars) == pytest.approx(1)


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize(
    "plain", [about(), about(name=HOSTILE), about() | {"matrices": [], "budget": {"energy": 0, "kept": 1, "kinds": []}}]
)
def test_it_is_a_picture_whatever_the_names(plain: dict[str, Any]) -> None:
    picture = adapter_picture(plain)

    assert picture.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(picture[16:20]) < 4000  # its width in points: no name makes it endless


def test_names_are_escaped_and_cut() -> None:
    bar = _bars(about(name=HOSTILE))[0]

    assert bar.name.isprintable()
    assert len(bar.name) <= 48
