"""A module is about one noun, and a function fits on a screen."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "deltarank"
MODULES = sorted(SOURCE.rglob("*.py"))

LONGEST_MODULE = 320
LONGEST_FUNCTION = 45


def shown(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_a_module_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_functions_are_short(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: lines for node in functions if (lines := _lines(node)) > LONGEST_FUNCTION}

    assert long == {}


def test_most_functions_fit_in_ten_lines() -> None:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in MODULES]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]

    assert sum(_lines(function) <= 10 for function in functions) >= 0.75 * len(functions)


def _lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Less its doc string: what is said of a function does not make it harder to read."""
    first = function.body[0]
    said = _height(first) if ast.get_docstring(function) else 0
    return _height(function) - said


def _height(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
