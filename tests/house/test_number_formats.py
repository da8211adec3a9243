"""Shares and measured numbers are written by `results/formatting.py` alone: one number looks the same everywhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

from deltarank import results

SOURCE = Path(results.__file__).parents[1]

ELSEWHERE = {
    "results/formatting.py": "the formats themselves",
    "report/view/text.py": "rounds numbers for the script of a page",
    "jobs/compare/measure.py": "rounds numbers for results.json",
    "jobs/outputs/summary.py": "rounds numbers for results.json",
    "jobs/fleet/kinship.py": "rounds numbers for fleet.json",
    "report/view/provenance.py": "six digits, so that an audit can be compared",
    "report/view/fleet.py": "cosines, in as many digits as their error allows",
    "jobs/fleet/kinship_sentences.py": "weights of a sum, likewise",
    "report/endpoints/html.py": "log-likelihoods, of which the differences matter",
    "cli/endpoint_weights.py": "log-likelihoods, likewise",
    "report/terminal/summary.py": "a column of six letters",
    "report/view/divergence_rows.py": "labels of positions",
    "demo/steps.py": "a progress bar",
    "demo/build.py": "the size of a model",
}
"""Modules that format a float themselves, and why."""


def float_formats(code: str) -> Iterator[str]:
    """Specifications such as ".3g" in f-strings. ".0f" is a whole number, and "g" repeats what a user gave."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FormattedValue) and isinstance(node.format_spec, ast.JoinedStr):
            parts = node.format_spec.values
            spec = "".join(part.value if isinstance(part, ast.Constant) else "?" for part in parts)
            if spec.endswith(tuple("eEfFgG%")) and spec not in (".0f", ",.0f", "g"):
                yield spec


def test_no_other_module_formats_a_float() -> None:
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if any(float_formats(path.read_text(encoding="utf-8")))
    }

    assert found <= ELSEWHERE.keys()
