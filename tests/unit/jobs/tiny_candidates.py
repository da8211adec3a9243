"""A tiny pair of models and candidates made of its checkpoints, as a job of `outputs` holds them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from deltarank.checkpoints import open_checkpoint
from deltarank.jobs.outputs.candidates import Candidate
from deltarank.jobs.outputs.loaded_model import LoadedModel, ModelLoader
from deltarank.models import EditedWeights, Head, Window, read_skeleton
from deltarank.results import CandidateKind


class Finished(list[tuple[int, bool]]):
    """The (number, resumed) that were reported."""

    def __call__(self, number: int, /, *, resumed: bool) -> None:
        self.append((number, resumed))

    def total(self, *, resumed: bool | None = None) -> int:
        return sum(number for number, was_resumed in self if resumed in (None, was_resumed))


def ignored(*_: object, resumed: bool) -> None:
    """A report that nobody reads."""


CPU = torch.device("cpu")


class CountingModel(LoadedModel):
    """A model that remembers what it predicted."""

    predicted: tuple[Window, ...] = ()

    def predict(self, windows: Sequence[Window]) -> tuple[list[Tensor], Head]:
        self.predicted += tuple(windows)
        return super().predict(windows)


@contextmanager
def opened_model(folder: Path) -> Iterator[CountingModel]:
    """The model of a folder, as a candidate that is loaded when it is first needed."""
    with open_checkpoint(folder) as checkpoint:
        weights = EditedWeights(checkpoint, [], CPU)
        candidate = Candidate(folder.name, CandidateKind.MODEL, read_skeleton(checkpoint), weights)
        with CountingModel(candidate, ModelLoader(CPU, torch.float32, streams=False, on_loaded=ignored)) as model:
            yield model
