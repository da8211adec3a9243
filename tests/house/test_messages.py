"""Messages and cures of errors are sentences."""

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "deltarank"


def literals(path: Path) -> Iterator[tuple[int, str]]:
    """The lines and the beginnings of the messages and cures of `SomeError("...", cure="...", slug=...)`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            cures = [keyword.value for keyword in node.keywords if keyword.arg == "cure"]
            for text in (*node.args[:1], *cures) if cures else ():
                first = text.values[0] if isinstance(text, ast.JoinedStr) else text
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    yield text.lineno, first.value


def test_messages_and_cures_begin_with_a_capital_letter() -> None:
    small = [
        f"{path.relative_to(SOURCE).as_posix()}:{line}: {text}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, text in literals(path)
        if text[:1].islower()
    ]

    assert small == []
