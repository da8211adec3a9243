"""The JSON Schemas in docs/schemas, generated from the types. `python tests/house/schema_files.py` writes them."""

import json
from pathlib import Path

import deltarank

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"


def schemas() -> dict[str, str]:
    """File name -> content."""
    kinds = {
        "results.schema.json": deltarank.Results,
        "endpoints.schema.json": deltarank.EndpointResults,
        "fleet.schema.json": deltarank.Fleet,
        "deltarank.schema.json": deltarank.ExtractedAdapter,
    }
    return {name: json.dumps(kind.json_schema(), indent=1) + "\n" for name, kind in kinds.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in schemas().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
