"""The page as text: one file, small enough, and nothing in it that a checkpoint could use."""

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path

import pytest
from builders import HOSTILE, experts, flat, hostile, low_rank, matrix, model, not_finite, results
from page_reader import PageReader

import deltarank.report
from deltarank.report import page_html
from deltarank.report.charts.theme import COLOURS, INKS, RAMP
from deltarank.report.document.render import embedded_json
from deltarank.report.page.payload import payload
from deltarank.report.view.build import page_data

STYLES = Path(deltarank.report.__file__).parent / "document"

CHANGE = "the change in the measured matrices, which hold 96 % of the whole change"


@cache
def page(kind: str = "one") -> PageReader:
    made = {
        "one": lambda: [results()],
        "three": lambda: [results(model(low_rank), name="a/Lora"), results(name="a/Full"), results(name="a/Third")],
        "hostile": lambda: [hostile()],
    }
    return PageReader(page_html(made[kind]()))


def test_the_policy_lets_only_its_own_scripts_run_and_nothing_be_fetched():
    reader = page()
    policy = next(a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for text in [*reader.raw["script"][1:], *reader.raw["style"]]:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_no_element_points_outside():
    for _, attributes in page("three").elements:
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


def test_the_sentence_and_the_verdict_stand_in_the_markup_without_script():
    text = " ".join("".join(page().text).split())
    assert f"keeps 52 % of {CHANGE}." in text.replace("\u00a0", " ")
    assert "Bigger-Body-12b is a full finetune or a merge." in text
    assert "deltarank compare mistralai/" in text


def test_a_verdict_that_repeats_the_sentence_is_not_shown_twice():
    said = f"As a rank-64 LoRA, Bigger-Body-12b keeps 52 % of {CHANGE}."
    text = "".join(PageReader(page_html([results(sentences=[said, "It is full."])])).text).replace("\u00a0", " ")
    assert text.count(CHANGE) == 1
    assert "It is full." in text


def test_runs_are_columns():
    tables = "".join(page("three").text)
    assert re.search(r"rank\s*Lora\s*Full\s*Third", tables)
    assert sum(a.get("data-chart") == "heat" for _, a in page("three").elements) == 3


def test_hostile_names_are_text_and_never_markup():
    reader = page("hostile")
    tags = {tag for tag, _ in reader.elements}
    assert not tags & {"img", "iframe", "object", "embed", "link", "form"}
    assert len(reader.raw["script"]) == 3
    assert any("<img src=x onerror=alert(1)>" in text for text in reader.text)
    assert "49" not in "".join(reader.text).split("{{7*7}}")[0][-40:]


def test_embedded_json_cannot_end_its_element_and_says_the_same():
    text = embedded_json({"name": HOSTILE, "amp": "&"})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"name": HOSTILE, "amp": "&"}


def test_the_script_gets_numbers_and_no_nan():
    rows = [*model(layers=2), not_finite(model(layers=3)[-1])]
    data = payload(page_data([results(rows)]))
    text = embedded_json(data)
    run = json.loads(text, parse_constant=pytest.fail)["runs"][0]
    assert len(rows) == len(run["matrices"]["name"])
    assert run["matrices"]["lost"][-1] == [None] * 8


def test_curves_share_their_indices():
    run = payload(page_data([results(model(layers=8))]))["runs"][0]
    assert len(run["matrices"]["shared_indices"]) <= 8


@pytest.mark.parametrize(
    "rows",
    [
        [],
        model(layers=1),
        [not_finite(m) for m in model(layers=1)],
        [matrix("lm_head.weight", layer=None, module="lm_head", shape=(64, 32), values=flat("a", 0, 1, 32))],
        [m for layer in range(2) for m in experts(layer, 128)],
    ],
    ids=["nothing", "one layer", "all NaN", "no layers", "128 experts"],
)
def test_a_page_for_any_results(rows):
    assert page_html([results(rows)]).rstrip().endswith("</html>")


def test_the_stylesheet_and_the_charts_use_the_same_inks():
    style = (STYLES / "colours.css").read_text()
    assert ", ".join(RAMP) in (STYLES / "page.css").read_text()
    light = style.split("@media")[0]
    for name, ink in INKS.items():
        assert f"--{name}: {ink};" in light
    for number, colour in enumerate(COLOURS):
        assert f"--series-{number}: {colour};" in light
    assert style.count("--series-8:") == 2
