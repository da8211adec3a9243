"""The table of the rooms in docs/architecture.md, made from the imports.

`python tests/house/rooms_page.py` makes it again.
"""

import re
from pathlib import Path

from test_rooms import MODULES, RULES, imports, module_of, room_of

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
_BLOCK = re.compile(r"(?<=<!-- rooms -->\n).*?(?=<!-- /rooms -->)", re.DOTALL)
_EVERYWHERE = ("errors", "results", "system")
"""Nearly every room imports these."""


def used_rooms() -> dict[str, set[str]]:
    """The rooms that each room imports, lazy imports included."""
    used: dict[str, set[str]] = {room: set() for room in RULES if room not in ("", "__main__")}
    for path in MODULES:
        here = room_of(module_of(path))
        if here in used:
            used[here] |= {room_of(x.module) for x in imports(path) if x.is_ours} - {here, ""}
    return used


def layers(used: dict[str, set[str]]) -> dict[str, int]:
    """The length of the longest way down from each room."""
    found: dict[str, int] = {}

    def layer(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((layer(each) for each in used[room]), default=0)
        return found[room]

    for room in used:
        layer(room)
    return found


def render() -> str:
    used = used_rooms()
    heights = layers(used)
    rooms = sorted((room for room in used if room != "jobs"), key=lambda room: (-heights[room], room))
    lines = ["| layer | room | imports |", "| ---: | --- | --- |"]
    for room in rooms:
        others = sorted(used[room] - set(_EVERYWHERE), key=lambda other: (-heights[other], other))
        lines.append(f"| {heights[room]} | {_code(room)} | {', '.join(map(_code, others))} |")
    return "\n".join(lines) + "\n"


def _code(room: str) -> str:
    return f"`{room.replace('.', '/')}`"


def page_with(table: str) -> str:
    return _BLOCK.sub(lambda _: table, PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page_with(render()), encoding="utf-8")
