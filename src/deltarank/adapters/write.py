"""The files of an adapter, written in small blocks, so that memory does not grow with their size."""

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

_DTYPE_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
_DTYPE_NAMES |= {torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}  # counters and tables of a whole module
_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32}
_BLOCK_BYTES = 8 << 20
_ALIGNMENT = 8

FillBuffer = Callable[[int, memoryview], None]
"""Given a position in bytes and a buffer, fills the buffer with the bytes from that position on."""


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor to be written block by block. `fill` provides its bytes; without it, the tensor is all zeros."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    fill: FillBuffer | None = None

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_weights(path: Path, tensors: Sequence[StreamedTensor]) -> None:
    """Writes a safetensors file of these tensors in this order, with a few megabytes in memory at a time.

    Raises:
        OSError: it cannot be written.
    """
    buffer = memoryview(bytearray(_BLOCK_BYTES))
    with path.open("wb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            for first in range(0, tensor.nbytes, _BLOCK_BYTES):
                block = buffer[: min(_BLOCK_BYTES, tensor.nbytes - first)]
                if tensor.fill is None:
                    block[:] = bytes(len(block))
                else:
                    tensor.fill(first, block)
                file.write(block)
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Sequence[StreamedTensor]) -> bytes:
    """8 bytes of length, then JSON, padded with spaces so that the tensors begin at a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.nbytes
        offsets = [start, end]
        entries[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def own_copy(factor: Tensor) -> Tensor:
    """A factor on the CPU that shares no memory with the buffers of a worker, which goes on to the next matrix."""
    return factor.to("cpu", copy=True, memory_format=torch.contiguous_format)


def write_factors(path: Path, a: Tensor, b: Tensor) -> None:
    """Writes the bytes of A and then of B; the file appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with write_atomically(path) as partial, partial.open("wb") as file:
        for matrix in (a, b):
            file.write(matrix.contiguous().cpu().view(torch.uint8).numpy().data)


def fill_from_file(path: Path, skip: int) -> FillBuffer:
    """The bytes of a file of `write_factors`, from byte `skip` on."""

    def fill(first: int, block: memoryview) -> None:
        with path.open("rb", buffering=0) as file:
            file.seek(skip + first)
            done = 0
            while done < len(block):
                got = file.readinto(block[done:])
                if not got:
                    raise OSError(f"{path.name} was cut short after it was written")
                done += got

    return fill


def fill_from_files(paths: Sequence[Path | None], length: int) -> FillBuffer:
    """The first `length` bytes of each file, one after the other; zeros in place of a file that is None."""

    def fill(first: int, block: memoryview) -> None:
        done = 0
        while done < len(block):
            index, skip = divmod(first + done, length)
            part = block[done : done + length - skip]
            _read_or_zero(paths[index], skip, part)
            done += len(part)

    return fill


def fill_interleaved(paths: Sequence[Path | None], skip: int, shape: tuple[int, int], size: int) -> FillBuffer:
    """The matrices that begin at byte `skip` of each file, interleaved by column; zeros in place of None.

    Row i holds entry (i, 0) of every matrix, then entry (i, 1) of every matrix, and so on.

    Args:
        shape: rows and columns of each matrix.
        size: bytes of an entry.
    """
    rows, columns = shape
    row_bytes, dtype = columns * len(paths) * size, _INTEGER_OF_SIZE[size]

    def fill(first: int, block: memoryview) -> None:
        top, bottom = first // row_bytes, min(-(-(first + len(block)) // row_bytes), rows)
        whole = torch.zeros(bottom - top, columns, len(paths), dtype=dtype)
        part = torch.empty(bottom - top, columns, dtype=dtype)
        for i, path in enumerate(paths):
            if path is not None:
                _read_or_zero(path, skip + top * columns * size, part.numpy().data.cast("B"))
                whole[:, :, i] = part
        start = first - top * row_bytes
        block[:] = whole.numpy().data.cast("B")[start : start + len(block)]

    return fill


def _read_or_zero(path: Path | None, first: int, block: memoryview) -> None:
    if path is None:
        block[:] = bytes(len(block))
    else:
        fill_from_file(path, first)(0, block)
