"""Values out of JSON, held against the annotations of the dataclass that they are for.

A file of results is passed around, so it is a stranger's, too. What does not fit is found here, by name, and not deep
in a chart that was given a word for a number.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any

LARGEST_INTEGER = 2**63

_Test = Callable[[Any], bool]


def check_fields(cls: type, values: Mapping[str, Any]) -> None:
    """Raises TypeError, which names the first field whose value is not of the annotated type.

    A number is finite, and no bool; a text can be encoded.
    """
    for name, fits in _tests(cls).items():
        if name in values and not fits(values[name]):
            shown = ascii(values[name])
            raise TypeError(f"{name} of a {cls.__name__} is {shown if len(shown) < 60 else shown[:60] + '...'}")


@cache
def _tests(cls: type) -> dict[str, _Test]:
    return {name: _test(hint) for name, hint in typing.get_type_hints(cls).items()}


def _test(hint: Any) -> _Test:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        some = [_test(each) for each in inner]
        return lambda value: any(fits(value) for fits in some)
    if origin is tuple and len(inner) == 2 and inner[1] is Ellipsis:
        each = _test(inner[0])
        return lambda value: isinstance(value, tuple) and all(map(each, value))
    if origin is tuple:
        parts = [_test(each) for each in inner]
        return lambda value: isinstance(value, tuple) and len(value) == len(parts) and all(map(_apply, parts, value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, held = (_test(each) for each in inner)
        return lambda value: isinstance(value, Mapping) and all(key(k) and held(v) for k, v in value.items())
    return _PLAIN.get(hint) or _instance(hint)


def _apply(fits: _Test, value: Any) -> bool:
    return fits(value)


def _instance(hint: Any) -> _Test:
    kind: type = object if hint is Any else hint
    return lambda value: isinstance(value, kind)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or isinstance(value, Enum):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    return True


def _is_integer(value: Any) -> bool:
    return type(value) is int and -LARGEST_INTEGER < value < LARGEST_INTEGER


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or _is_integer(value)


_PLAIN: dict[Any, _Test] = {
    str: _is_text,
    int: _is_integer,
    float: _is_number,
    bool: lambda value: isinstance(value, bool),
    type(None): lambda value: value is None,
}
