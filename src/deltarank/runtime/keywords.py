"""Functions that take their options as keywords: `compare(base, finetune, ranks=[16])`.

The options of a job are a frozen dataclass, which has the defaults and the checks. A TypedDict with the same names
types the keywords of the functions that share them: `def compare(..., **keywords: Unpack[CompareKeywords])`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar, get_type_hints

from deltarank.runtime.inputs import InputKeywords, PairRefs, Ref

_P = ParamSpec("_P")
_Result = TypeVar("_Result")
_Options = TypeVar("_Options")


def parse_keywords(
    base: Ref, finetune: Ref, keywords: Mapping[str, Any], options: Callable[..., _Options]
) -> tuple[PairRefs, _Options]:
    """The references and the options of a job, from the keywords of a public function.

    Raises:
        UsageError: a value is not usable.
    """
    names = InputKeywords.__annotations__.keys()
    inputs = {name: value for name, value in keywords.items() if name in names}
    others = {name: value for name, value in keywords.items() if name not in names}
    return PairRefs.of(base, finetune, **inputs), options(**others)


def shows_keywords(keywords: type, options: type) -> Callable[[Callable[_P, _Result]], Callable[_P, _Result]]:
    """Gives a function whose last parameter is `**keywords` the signature that its options have.

    `help`, `inspect.signature` and notebooks then show each option with its type and default, and an unknown keyword is
    refused in the function's own name.

    Args:
        keywords: the TypedDict, which has the types.
        options: the dataclass, which has the defaults; those of the inputs are added, as far as the TypedDict has them.
    """
    types = get_type_hints(keywords)

    def decorate(function: Callable[_P, _Result]) -> Callable[_P, _Result]:
        own = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
        names = {p.name for p in own}
        sources = (inspect.signature(source) for source in (options, PairRefs.of))
        parameters = [p for source in sources for p in source.parameters.values() if p.kind is p.KEYWORD_ONLY]
        shown = [p.replace(annotation=types[p.name]) for p in parameters if p.name in types and p.name not in names]
        signature = inspect.signature(function).replace(parameters=[*own, *shown])

        @functools.wraps(function)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _Result:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            return function(*args, **kwargs)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        return checked

    return decorate
