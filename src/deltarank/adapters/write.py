"""An adapter's files, written so that memory stays small however large they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltarank.system import write_atomically

_WORDS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
_INTEGERS = {2: torch.int16, 4: torch.int32}
_BLOCK = 8 << 20
_ALIGNMENT = 8

FillBuffer = Callable[[int, memoryview], None]
"""Given a position in bytes and a buffer, fills the buffer with what stands there."""


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor to be written. `fill` brings its bytes, block by block; without one it is all zeros."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    fill: FillBuffer | None = None

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_weights(path: Path, tensors: Sequence[StreamedTensor]) -> None:
    """A safetensors file of these tensors in this order, a few megabytes in memory at a time.

    Raises:
        OSError: it cannot be written.
    """
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("wb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            for first in range(0, tensor.nbytes, _BLOCK):
                block = buffer[: min(_BLOCK, tensor.nbytes - first)]
                if tensor.fill is None:
                    block[:] = bytes(len(block))
                else:
                    tensor.fill(first, block)
                file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Sequence[StreamedTensor]) -> bytes:
    """8 bytes of length, then JSON, padded with spaces so that the numbers begin at a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in tensors:
        end = place + tensor.nbytes
        offsets = [place, end]
        entries[tensor.name] = {"dtype": _WORDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_factors(path: Path, a: Tensor, b: Tensor) -> None:
    """The bytes of A and then of B, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with write_atomically(path) as partial, partial.open("wb") as file:
        for matrix in (a, b):
            file.write(matrix.contiguous().cpu().view(torch.uint8).numpy().data)


def fill_from_file(path: Path, skip: int) -> FillBuffer:
    """Reads what `write_factors` wrote, from byte `skip` on."""

    def fill(first: int, block: memoryview) -> None:
        with path.open("rb", buffering=0) as file:
            file.seek(skip + first)
            done = 0
            while done < len(block):
                got = file.readinto(block[done:])
                if not got:
                    raise OSError(f"{path.name} became shorter since it was written")
                done += got

    return fill


def fill_from_files(paths: Sequence[Path | None], length: int) -> FillBuffer:
    """The first `length` bytes of each of these files, one after the other; zeros where there is no file."""

    def fill(first: int, block: memoryview) -> None:
        done = 0
        while done < len(block):
            number, skip = divmod(first + done, length)
            part = block[done : done + length - skip]
            _read_or_zero(paths[number], skip, part)
            done += len(part)

    return fill


def fill_interleaved(paths: Sequence[Path | None], skip: int, shape: tuple[int, int], size: int) -> FillBuffer:
    """Matrices of this shape, which stand `skip` bytes into each of these files, column by column side by side.

    Row i holds column 0 of row i of every matrix, then column 1 of every matrix, and so on; a number has `size` bytes.
    """
    rows, columns = shape
    length, word = columns * len(paths) * size, _INTEGERS[size]

    def fill(first: int, block: memoryview) -> None:
        top, bottom = first // length, min(-(-(first + len(block)) // length), rows)
        whole = torch.zeros(bottom - top, columns, len(paths), dtype=word)
        part = torch.empty(bottom - top, columns, dtype=word)
        for number, path in enumerate(paths):
            if path is not None:
                _read_or_zero(path, skip + top * columns * size, part.numpy().data.cast("B"))
                whole[:, :, number] = part
        start = first - top * length
        block[:] = whole.numpy().data.cast("B")[start : start + len(block)]

    return fill


def _read_or_zero(path: Path | None, first: int, block: memoryview) -> None:
    if path is None:
        block[:] = bytes(len(block))
    else:
        fill_from_file(path, first)(0, block)
