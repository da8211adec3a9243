"""The published JSON Schemas are those of the code, and hold for what is written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from schema_files import FOLDER, schemas

import deltarank
from tiny_architectures import DENSE, write_pair
from unit.results.whole_results import OUTPUTS


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def properties(schema: dict[str, Any], value: Any, path: str = "$") -> list[str]:
    """The fields of a JSON value that its schema does not name."""
    if "$ref" in schema["here"]:
        schema = {**schema, "here": schema["all"]["$defs"][schema["here"]["$ref"].rsplit("/", 1)[-1]]}
    here = schema["here"]
    for choice in here.get("anyOf", []):
        if "$ref" in choice and isinstance(value, dict):
            return properties({**schema, "here": choice}, value, path)
    if isinstance(value, list) and "items" in here and isinstance(here["items"], dict):
        return [name for each in value for name in properties({**schema, "here": here["items"]}, each, f"{path}[]")]
    if isinstance(value, dict) and "properties" in here:
        known = here["properties"]
        return [
            name
            for key, each in value.items()
            for name in (
                properties({**schema, "here": known[key]}, each, f"{path}.{key}") if key in known else [f"{path}.{key}"]
            )
        ]
    return []


@pytest.mark.parametrize(
    "name", ["results.schema.json", "endpoints.schema.json", "fleet.schema.json", "deltarank.schema.json"]
)
def test_the_published_schemas_are_those_of_the_code(name: str) -> None:
    assert json.loads((FOLDER / name).read_text(encoding="utf-8")) == json.loads(schemas()[name]), (
        "run `python tests/house/schema_files.py`"
    )


def test_they_hold_for_a_run_and_an_adapter_and_name_each_field(tmp_path: Path) -> None:
    base, finetune = write_pair(DENSE["llama"], tmp_path)
    results = deltarank.compare(base, finetune, ranks=[2, 4], audit=1)
    (tmp_path / "run").mkdir()
    replace(results, outputs=OUTPUTS).save(tmp_path / "run" / "results.json")
    deltarank.extract(base, finetune, rank=2, server="peft", output=tmp_path / "adapter")

    for file, name in (
        ("run/results.json", "results.schema.json"),
        ("adapter/deltarank.json", "deltarank.schema.json"),
    ):
        written = json.loads((tmp_path / file).read_text(encoding="utf-8"))
        schema = validator(name)
        schema.validate(written)
        assert properties({"all": schema.schema, "here": schema.schema}, written) == []
        del written["base"]
        assert not schema.is_valid(written)
