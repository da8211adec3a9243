"""The format of `torch.save` before torch 1.6, which many models of 2018 to 2021 have: pickles, then the numbers.

    pickle  a magic number
    pickle  the version of the protocol, 1001
    pickle  the sizes of integers on the machine that wrote it
    pickle  the object; a storage in it is a key
    pickle  the keys of the storages, in the order in which they follow
    for each key: the number of its elements, 8 bytes, and the elements

Nothing in the pickles is executed: torch's unpickler for `weights_only=True` refuses everything but tensors and plain
containers. Storages are made on the meta device, without memory, and get their offsets in the file.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import BinaryIO

import torch
from torch import _weights_only_unpickler

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle: the number 0x1950a86a20f9469cfc6c."""

_COUNT_BYTES = 8


def load_legacy(path: Path, *, most: int) -> object:
    """The unpickled object, with meta tensors whose storages know their `_checkpoint_offset`.

    Args:
        most: bytes that its pickles may have.

    Raises:
        pickle.UnpicklingError: it holds more than tensors and plain containers.
        ValueError: it is truncated, or is not of this format.
    """
    storages = _Storages()
    with path.open("rb") as stream:
        pickles = _Limited(stream, most)
        for _ in range(3):
            _unpickle(pickles, storages)
        loaded = _unpickle(pickles, storages)
        keys = _unpickle(pickles, storages)
        if not isinstance(keys, list):
            raise ValueError("it has no list of storages")
        storages.locate(stream, keys)
    return loaded


def _unpickle(stream: _Limited, storages: _Storages) -> object:
    unpickler = _weights_only_unpickler.Unpickler(stream, encoding="utf-8")
    unpickler.persistent_load = storages.storage  # type: ignore[method-assign]
    loaded: object = unpickler.load()  # type: ignore[no-untyped-call]
    return loaded


class _Limited:
    """A file of which only so many bytes are read."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream, self._left = stream, most

    def read(self, size: int) -> bytes:
        self._take(size)
        found = self._stream.read(size)
        if len(found) < size:
            raise ValueError("it is truncated")
        return found

    def readline(self) -> bytes:
        found = self._stream.readline(self._left)
        self._take(len(found))
        return found

    def _take(self, size: int) -> None:
        self._left -= size
        if size < 0 or self._left < 0:
            raise ValueError("its pickles are too long")


class _Storages:
    """The storages that a pickle names, by key, with the number of their elements."""

    def __init__(self) -> None:
        self._by_key: dict[str, tuple[torch.UntypedStorage, torch.dtype, int]] = {}

    def storage(self, identity: object) -> torch.TypedStorage:
        """What a persistent id stands for: ("storage", type, key, device, elements, view)."""
        match identity:
            case ("storage", kind, str(key), _, int(elements), None) if elements >= 0:
                dtype = getattr(kind, "dtype", None)
                if isinstance(dtype, torch.dtype):
                    if key not in self._by_key:
                        self._by_key[key] = _empty_storage(elements * dtype.itemsize), dtype, elements
                    return _typed(*self._by_key[key][:2])
        raise pickle.UnpicklingError("it has a storage of a kind that torch no longer writes")

    def locate(self, stream: BinaryIO, keys: list[object]) -> None:
        """Finds where the elements of each storage begin, from where the pickles end."""
        position, end = stream.tell(), stream.seek(0, os.SEEK_END)
        for key in keys:
            storage, _, elements = self._by_key.get(str(key), (None, None, -1))
            stream.seek(position)
            if storage is None or int.from_bytes(stream.read(_COUNT_BYTES), "little") != elements:
                raise ValueError("its storages are not those that its pickle names")
            storage._checkpoint_offset = position + _COUNT_BYTES
            position += _COUNT_BYTES + storage.nbytes()
            if position > end:
                raise ValueError("it is truncated")


def _empty_storage(nbytes: int) -> torch.UntypedStorage:
    return torch.UntypedStorage(nbytes, device="meta")  # type: ignore[no-untyped-call]


def _typed(storage: torch.UntypedStorage, dtype: torch.dtype) -> torch.TypedStorage:
    return torch.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]
