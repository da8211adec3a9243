"""PEFT imports every library for quantisation that is installed, and some log while they are imported."""

import ast

from test_sizes import MODULES, shown

ALREADY_SILENT = {"demo/model.py"}
"""Imported by `demo.lab` under `silence_logging`."""


def test_no_module_imports_peft_or_bitsandbytes_aloud() -> None:
    """A module imports them with `import_silently`, or inside a function that runs after it."""
    loud = {
        shown(path)
        for path in MODULES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if {name.partition(".")[0] for name in _imported(node)} & {"peft", "bitsandbytes"}
    }

    assert loud == ALREADY_SILENT


def _imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [each.name for each in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
