"""A checkpoint some of whose tensors are put together from rows of stored tensors, when they are read."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from deltarank.checkpoints.formats.safetensors_header import TensorInfo
from deltarank.checkpoints.source import Source


@dataclass(frozen=True)
class RowView:
    """A tensor made of the rows of `parts`, which have one width and one dtype.

    order  the rows of `parts`, counted through all of them, in the order of this tensor's; None: as they are
    """

    name: str
    parts: tuple[TensorInfo, ...]
    order: Tensor | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is a stored tensor as it is, under another name."""
        return self.order is None and len(self.parts) == 1

    @property
    def rows(self) -> int:
        return sum(part.shape[0] for part in self.parts) if self.order is None else len(self.order)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self.parts[0].shape[1:])

    @property
    def row_nbytes(self) -> int:
        return self.parts[0].nbytes // self.parts[0].shape[0]


class RearrangedSource:
    """The files of another source, and one virtual file that holds the views."""

    def __init__(self, source: Source, views: Sequence[RowView]) -> None:
        self._source = source
        self._file = f"{next(iter(source.files))} with rows rearranged"
        self._views = list(views)
        ends = list(accumulate(view.rows * view.row_nbytes for view in views))
        self._starts = [0, *ends[:-1]]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The views, by name."""
        return {view.name: self._info(view, start) for view, start in zip(self._views, self._starts, strict=True)}

    def _info(self, view: RowView, start: int) -> TensorInfo:
        nbytes = view.rows * view.row_nbytes
        return replace(view.parts[0], name=view.name, shape=view.shape, file=self._file, start=start, nbytes=nbytes)

    @property
    def files(self) -> Mapping[str, int]:
        return self._source.files

    def read_into(self, file: str, start: int, buffer: memoryview) -> None:
        if file != self._file:
            self._source.read_into(file, start, buffer)
        elif buffer.nbytes:
            view, position = self._find(start)
            width = view.row_nbytes
            first, last = position // width, -(-(position + buffer.nbytes) // width)
            rows = self._rows(view, first, last).view(-1)
            skip = position - first * width
            torch.frombuffer(buffer, dtype=torch.uint8).copy_(rows[skip : skip + buffer.nbytes])

    def _find(self, start: int) -> tuple[RowView, int]:
        """The view that holds byte `start` of the virtual file, and the byte's position in it."""
        index = bisect.bisect_right(self._starts, start) - 1
        return self._views[index], start - self._starts[index]

    def _rows(self, view: RowView, first: int, last: int) -> Tensor:
        """Rows of a view as bytes, (last - first, bytes of a row)."""
        out = torch.empty((last - first, view.row_nbytes), dtype=torch.uint8)
        wanted = torch.arange(first, last) if view.order is None else view.order[first:last]
        for part, offset in _offsets(view.parts):
            places = torch.nonzero((wanted >= offset) & (wanted < offset + part.shape[0])).view(-1)
            if len(places):
                rows = wanted[places] - offset
                block = self._block(part, int(rows.min()), int(rows.max()) + 1, view.row_nbytes)
                out[places] = block[rows - rows.min()]
        return out

    def _block(self, part: TensorInfo, first: int, last: int, row_nbytes: int) -> Tensor:
        block = torch.empty((last - first, row_nbytes), dtype=torch.uint8)
        self._source.read_into(part.file, part.start + first * row_nbytes, block.view(-1).numpy().data)
        return block

    def prefetch(self, file: str, start: int, length: int) -> None:
        if file != self._file:
            self._source.prefetch(file, start, length)
            return
        view, _ = self._find(start)
        for part in view.parts:
            self._source.prefetch(part.file, part.start, part.nbytes)

    def identity(self, file: str) -> str:
        return f"rearranged {id(self)} {file}" if file == self._file else self._source.identity(file)

    def fingerprint(self, file: str) -> str:
        return self._source.fingerprint(file)

    def interrupt(self) -> None:
        self._source.interrupt()

    def close(self) -> None:
        """Closes the files of the other source."""
        self._source.close()


def _offsets(parts: Sequence[TensorInfo]) -> Iterator[tuple[TensorInfo, int]]:
    offset = 0
    for part in parts:
        yield part, offset
        offset += part.shape[0]
