"""A module is about one noun, and a function fits on a screen."""

import ast
import functools
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "deltarank"
MODULES = sorted(SOURCE.rglob("*.py"))

LONGEST_MODULE = 320
LONGEST_FUNCTION = 45


def shown(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@functools.cache
def function_lines() -> dict[str, int]:
    """The lines of each function of each module: "jobs/plan.py:14: make_plan" -> 9."""
    return {
        f"{shown(path)}:{node.lineno}: {node.name}": _lines(node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_modules_are_short() -> None:
    lines = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}

    assert {path: count for path, count in lines.items() if count > LONGEST_MODULE} == {}


def test_functions_are_short() -> None:
    assert {name: lines for name, lines in function_lines().items() if lines > LONGEST_FUNCTION} == {}


def test_most_functions_fit_in_ten_lines() -> None:
    lines = function_lines().values()

    assert sum(count <= 10 for count in lines) >= 0.75 * len(lines)


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Less its doc string: what is said of a function does not make it harder to read."""
    first = function.body[0]
    said = _height(first) if ast.get_docstring(function) else 0
    return _height(function) - said


def _height(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_a_module_says_what_it_is() -> None:
    silent = [path for path in MODULES if not path.read_text(encoding="utf-8").lstrip().startswith('"""')]

    assert [shown(path) for path in silent] == []
