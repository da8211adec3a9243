"""`layers_to_transform` and `layers_pattern`: the layers whose modules are targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from deltarank.adapters.patterns import InvalidFieldError, is_plain_name


@dataclass(frozen=True)
class LayerSelection:
    """Some layers.

    numbers   None for all
    lists     the names of the lists of layers in which these numbers count; empty for any list
    """

    numbers: frozenset[int] | None = None
    lists: tuple[str, ...] = ()

    @property
    def is_all(self) -> bool:
        return self.numbers is None

    def has(self, module: str) -> bool:
        """Whether a module is in one of them. PEFT takes the first number after a name of a list for the layer."""
        if self.numbers is None:
            return True
        parts = module.split(".")
        first = 0 if self.lists else 1
        for before, number, _ in zip(parts[first:], parts[first + 1 :], parts[first + 2 :], strict=False):
            if number.isdecimal() and (not self.lists or before in self.lists):
                return int(number) in self.numbers
        return False

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """Raises InvalidFieldError for what PEFT refuses, and for expressions as names of lists."""
        value, pattern = data.get("layers_to_transform"), data.get("layers_pattern")
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(each, int) and not isinstance(each, bool) for each in numbers):
            raise InvalidFieldError(f"layers_to_transform is {ascii(value)[:40]}; numbers of layers were expected")
        if numbers and isinstance(data.get("target_modules"), str):
            raise InvalidFieldError("layers_to_transform is set, and target_modules is a string, which PEFT refuses")
        lists = pattern if isinstance(pattern, list) else [pattern] if pattern else []
        if not all(isinstance(each, str) and is_plain_name(each) for each in lists):
            raise InvalidFieldError(f"layers_pattern is {ascii(pattern)[:60]}; plain names were expected")
        if lists and not numbers:
            raise InvalidFieldError("layers_pattern is set without layers_to_transform, which PEFT refuses")
        return cls(frozenset(numbers) if numbers else None, tuple(lists))


ALL_LAYERS = LayerSelection()
