"""Functions that take their options as keywords: `compare(base, finetune, ranks=[16])`.

The options of a job are a frozen dataclass, which has the defaults and the checks. A TypedDict with the same names
types the keywords of the functions that share them: `def compare(..., **keywords: Unpack[CompareKeywords])`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def split_keywords(keywords: Mapping[str, Any], *, first: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of the TypedDict `first`, and the others."""
    names = first.__annotations__.keys()
    return (
        {name: value for name, value in keywords.items() if name in names},
        {name: value for name, value in keywords.items() if name not in names},
    )


def shows_keywords_of(*sources: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """Gives a function whose last parameter is `**keywords` the keyword-only parameters of `sources` as its signature.

    `help`, `inspect.signature` and notebooks then show each option with its type and default.
    """

    def decorate(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {p.name for p in own}
        options = [p for source in sources for p in inspect.signature(source).parameters.values()]
        others = [p for p in options if p.kind is p.KEYWORD_ONLY and p.name not in names]
        function.__signature__ = signature.replace(parameters=[*own, *others])  # type: ignore[attr-defined]
        return function

    return decorate
