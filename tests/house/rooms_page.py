"""The drawing of the rooms in docs/architecture.md, made from the imports.

`python tests/house/rooms_page.py` draws it again.
"""

import re
from pathlib import Path

from test_rooms import MODULES, RULES, imports, module_of, room_of

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
_BLOCK = re.compile(r"(?<=<!-- rooms -->\n).*?(?=<!-- /rooms -->)", re.DOTALL)
_EVERYWHERE = ("errors", "results", "system")
"""Nearly every room imports these: their arrows would hide the others."""


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
    lines = ["```mermaid", "flowchart TD"]
    for room in rooms:
        if room not in _EVERYWHERE:
            lines += [
                f"    {_node(room)} --> {_node(other)}" for other in sorted(used[room]) if other not in _EVERYWHERE
            ]
    lines += ["```", "", "| layer | rooms |", "| ---: | --- |"]
    for height in sorted(set(heights.values()), reverse=True):
        names = ", ".join(f"`{room.replace('.', '/')}`" for room in rooms if heights[room] == height)
        lines += [f"| {height} | {names} |"] if names else []
    return "\n".join(lines) + "\n"


def _node(room: str) -> str:
    return f'{room.replace(".", "_")}["{room.replace(".", "/")}"]'


def page_with(drawing: str) -> str:
    return _BLOCK.sub(lambda _: drawing, PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page_with(render()), encoding="utf-8")
