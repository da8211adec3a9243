"""Values as bytes in which each source of a checkpoint is a reference, so that a task is small.

A source is stored once in the cluster and loaded once in each process, where it opens its files itself.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray import cloudpickle


@dataclass(frozen=True)
class Packed:
    """A value as bytes, and where the sources are that it refers to."""

    content: bytes
    references: Mapping[int, Any]


class Packer:
    """Packs values. `put` stores a `Packed` in the cluster and returns a reference to it."""

    def __init__(self, put: Callable[[Packed], Any]) -> None:
        self._put = put
        self._references: dict[int, Any] = {}
        self.sources: dict[int, Any] = {}

    def pack(self, value: object) -> Packed:
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, self._reference, root=value)
        pickler.dump(value)
        return Packed(buffer.getvalue(), {key: self._references[key] for key in pickler.keys})

    def _reference(self, source: object) -> int:
        """The key of a source: `sources` keeps it alive, so that no other object gets the same one."""
        key = id(source)
        if key not in self._references:
            self.sources[key] = source
            self._references[key] = self._put(self.pack(source))
        return key


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, buffer: io.BytesIO, reference: Callable[[object], int], *, root: object) -> None:
        super().__init__(buffer)
        self._reference, self._root = reference, root
        self.keys: set[int] = set()

    def persistent_id(self, value: object) -> int | None:
        if value is self._root or not hasattr(type(value), "read_into"):
            return None
        key = self._reference(value)
        self.keys.add(key)
        return key


class Unpacker:
    """Unpacks values. `fetch` returns the `Packed` of a reference.

    sources  those that were loaded, by their keys
    """

    def __init__(self, fetch: Callable[[Any], Packed]) -> None:
        self._fetch = fetch
        self.sources: dict[int, Any] = {}

    def unpack(self, packed: Packed) -> Any:
        """
        Raises:
            CheckpointError: the files of a source are not there, or are others.
        """
        return _Unpickler(io.BytesIO(packed.content), lambda key: self._source(key, packed.references[key])).load()

    def _source(self, key: int, reference: Any) -> Any:
        if key not in self.sources:
            self.sources[key] = self.unpack(self._fetch(reference))
        return self.sources[key]


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, source: Callable[[int], Any]) -> None:
        super().__init__(buffer)
        self._source = source

    def persistent_load(self, key: int) -> Any:
        return self._source(key)
