"""The sketches of a fleet: taken by the workers that measure, kept with each run, and stacked for all finetunes."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from deltarank.checkpoints import Checkpoint
from deltarank.errors import ResultsError
from deltarank.results import DeltaSketch, FleetFinetune, MatrixResult
from deltarank.runtime import Record, as_output_error
from deltarank.spectra import sketch_delta, sketch_length
from deltarank.system import write_text_atomically

SKETCH_OF = "sketch_of"
"""The key of a record that has the sketch of a matrix; its other key is "numbers"."""


def length_for(base: Checkpoint) -> int:
    """Numbers in the sketch of each matrix of a fleet: the same for all finetunes, since it follows from the base."""
    return sketch_length(sum(len(info.shape) >= 2 for info in base.tensors.values()))


def encoded_sketch(name: str, delta: Tensor, length: int) -> str:
    """The sketch of one matrix, as it is stored."""
    numbers = sketch_delta(delta, length, seed=zlib.crc32(name.encode())).numpy()
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode("ascii")


def save_sketches(records: Iterable[Record], measured: Iterable[MatrixResult], length: int, folder: Path) -> None:
    """Writes the sketches among the records of a run into its folder; "" for a measured matrix that did not change."""
    found = {str(record[SKETCH_OF]): str(record.get("numbers")) for record in records if SKETCH_OF in record}
    numbers = {matrix.name: found.get(matrix.name, "") for matrix in measured}
    with as_output_error(folder):
        write_text_atomically(folder / str(DeltaSketch.file_name), DeltaSketch(length, numbers).to_json())


def load_sketches(finetunes: Iterable[FleetFinetune], folder: Path) -> dict[str, DeltaSketch]:
    """The sketches of the finetunes whose runs have them, by name. `folder` is that of the fleet."""
    found = {}
    for each in finetunes:
        with suppress(ResultsError):
            if each.run is not None and (folder / each.run / str(DeltaSketch.file_name)).is_file():
                found[each.name] = DeltaSketch.load(folder / each.run)
    return found


@dataclass(frozen=True)
class SketchStack:
    """The sketches of several finetunes.

    names     of the finetunes
    segments  of each matrix, (finetunes, length): zeros for a finetune without a sketch of it
    """

    names: tuple[str, ...]
    segments: Sequence[np.ndarray]

    @classmethod
    def of(cls, sketches: Mapping[str, DeltaSketch]) -> SketchStack:
        """Sketches by the names of the finetunes. All have one length."""
        matrices = dict.fromkeys(matrix for sketch in sketches.values() for matrix in sketch.matrices)
        segments = [
            np.stack([_numbers(sketch.matrices.get(matrix), sketch.length) for sketch in sketches.values()])
            for matrix in matrices
        ]
        return cls(tuple(sketches), segments)

    def gram(self) -> np.ndarray:
        """The inner products of the deltas as the sketches have them, (finetunes, finetunes), in float64."""
        total = np.zeros((len(self.names), len(self.names)))
        for segment in self.segments:
            wide = segment.astype(np.float64)
            total += wide @ wide.T
        return total

    def standard_error(self) -> float:
        """Of a cosine near 0, for the pair where it is largest: sqrt(sum over matrices of ||x||^2 ||y||^2 / length)."""
        energies = np.array([np.square(segment, dtype=np.float64).sum(1) for segment in self.segments]).T
        if not energies.size:
            return 0.0
        shares = energies / np.maximum(energies.sum(1, keepdims=True), np.finfo(float).tiny)
        squares = shares @ shares.T / self.segments[0].shape[1]
        np.fill_diagonal(squares, 0)
        return float(np.sqrt(squares.max()))


def _numbers(encoded: str | None, length: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(encoded), "<f4") if encoded else np.zeros(length, "<f4")
