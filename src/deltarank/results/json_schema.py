"""JSON Schema (draft 2020-12) of the stored results, from the types of their fields."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Figures = Mapping[type, Mapping[str, Any]]
"""Of a dataclass: the names and types of what is written beside its fields, because it follows from them."""


def schema_of(kind: type, *, title: str, figures: Figures, hidden: Collection[str] = ()) -> dict[str, Any]:
    """The schema of the JSON that a dataclass is written as. Unknown fields are allowed: a later version may add some.

    Args:
        figures: of `kind` and of the dataclasses in it.
        hidden: fields of `kind` that are not written.
    """
    added = [(owner, name, type_) for owner, each in figures.items() for name, type_ in each.items()]
    schemas, parts = msgspec.json.schema_components(
        [kind, *(type_ for _, _, type_ in added)], schema_hook=_text, ref_template="#/$defs/{name}"
    )
    for (owner, name, _), schema in zip(added, schemas[1:], strict=True):
        parts[owner.__name__]["properties"][name] = schema
    for part in parts.values():
        _tidy(part)
    whole = parts.pop(kind.__name__)
    for name in hidden:
        del whole["properties"][name]
    return {"$schema": DIALECT, **whole, "title": title, "$defs": dict(sorted(_used(whole, parts)))}


def _text(_: type) -> dict[str, Any]:
    """A type that JSON does not have, such as a path, is written as a text."""
    return {"type": "string"}


def _tidy(part: dict[str, Any]) -> None:
    """A description without indentation; none where Python wrote the docstring (the signature of the class).

    Empty objects are no defaults: msgspec states them from 0.23 on, and not before.
    """
    described = inspect.cleandoc(part.pop("description", ""))
    if described and not described.startswith(f"{part.get('title')}("):
        part["description"] = described
    for field in part.get("properties", {}).values():
        if field.get("default") == {}:
            del field["default"]


def _used(whole: Mapping[str, Any], parts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The parts that are referred to."""
    text = msgspec.json.encode([whole, parts]).decode()
    return ((name, part) for name, part in parts.items() if f'"#/$defs/{name}"' in text)
