"""Every chart is Vega-Lite as its schema has it: charts are plain dictionaries, which check nothing themselves."""

import json
from pathlib import Path

import altair
import jsonschema
import pytest
from builders import hostile, low_rank, model, results
from outputs_builders import outputs

from deltarank.report.page.payload import charts
from deltarank.report.page.posters import posters
from deltarank.report.view.build import page_data
from deltarank.results import Results

PAGES = {
    "one run": [results(model(layers=2), outputs=outputs())],
    "one rank": [results(model(layers=2, ranks=(64,)))],
    "many layers": [results(model(layers=80))],
    "two runs": [results(model(low_rank), name="a/Lora", outputs=outputs()), results(name="a/Full")],
    "nothing measured": [results([])],
    "hostile names": [hostile()],
}


SCHEMA = Path(altair.__file__).parent / "vegalite" / "v6" / "schema" / "vega-lite-schema.json"


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


@pytest.mark.parametrize("runs", PAGES.values(), ids=PAGES)
def test_the_charts_of_a_page_are_valid(schema: jsonschema.Draft7Validator, runs: list[Results]) -> None:
    page = page_data(runs)

    for chart in charts(page).values():
        schema.validate(chart["definition"])


@pytest.mark.parametrize("runs", PAGES.values(), ids=PAGES)
def test_the_pictures_are_valid(schema: jsonschema.Draft7Validator, runs: list[Results]) -> None:
    made = posters(page_data(runs))

    assert len(made) >= (3 if any(run.measured for run in runs) else 0)
    for picture in made.values():
        schema.validate({key: part for key, part in picture.items() if key != "config"})  # it holds a null


def test_the_check_can_fail(schema: jsonschema.Draft7Validator) -> None:
    chart = charts(page_data(PAGES["one run"]))["heat"]["definition"]
    chart["layer"][0]["mark"]["cursor"] = "hand of god"

    assert not schema.is_valid(chart)
