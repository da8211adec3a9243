"""Functions that take the options of a job as `**keywords`, shown with the signature that `help()` shows."""

from __future__ import annotations

import importlib
import inspect
import typing
from typing import Any

from griffe import Extension, Function, Parameter, ParameterKind, Parameters

_KINDS = {
    inspect.Parameter.POSITIONAL_OR_KEYWORD: ParameterKind.positional_or_keyword,
    inspect.Parameter.KEYWORD_ONLY: ParameterKind.keyword_only,
}


class ShownSignatures(Extension):
    """Takes the parameters of what is decorated with `shows_keywords` from the function itself."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        if not any(str(each.value).startswith("shows_keywords(") for each in func.decorators):
            return
        function = getattr(importlib.import_module(func.module.path), func.name)
        func.parameters = Parameters(*map(_shown, inspect.signature(function).parameters.values()))


def _shown(parameter: inspect.Parameter) -> Parameter:
    default = None if parameter.default is parameter.empty else repr(parameter.default)
    return Parameter(
        parameter.name, annotation=_words(parameter.annotation), kind=_KINDS[parameter.kind], default=default
    )


def _words(annotation: Any) -> str:
    """An annotation as it is written; of a type, its name without the package."""
    if isinstance(annotation, str):
        return annotation
    if typing.get_origin(annotation) is None and isinstance(annotation, type):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")
