"""Messages and cures of errors are sentences."""

import ast
import re
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


PAGE = Path(__file__).parents[2] / "docs" / "messages.md"


def sections() -> dict[str, str]:
    """The text below each heading of the page."""
    _, *parts = PAGE.read_text(encoding="utf-8").split("\n## ")
    return {name: text for name, _, text in (part.partition("\n") for part in parts)}


def test_every_section_quotes_its_message_and_has_a_cure() -> None:
    """The message first, as a quotation; then what it means, where it does not say that itself; then what to do."""
    form = re.compile(r"\n(> .+\n)+\n(.+\n\n?)?\*\*Cure\.\*\* \S.*", re.DOTALL)

    assert [name for name, text in sections().items() if not form.fullmatch(text)] == []
