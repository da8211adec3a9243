"""A candidate's model: its model is made when it is first needed, and gone before the next one's is."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltarank.jobs.outputs.candidates import Candidate
from deltarank.models import Head, Predictor, Window, load, output_head, stream, translate_out_of_memory

_WORTH_COLLECTING = 10_000_000
"""Parameters. Collecting takes most of a second; Python does it itself before small models add up."""


@dataclass(frozen=True)
class ModelLoader:
    """How models are made: whole, or streamed where they do not fit."""

    device: torch.device
    dtype: torch.dtype
    streams: bool


class LoadedModel:
    """One candidate's model, if it is needed at all. Use it in a `with`."""

    def __init__(self, candidate: Candidate, loader: ModelLoader) -> None:
        self.candidate, self.loader = candidate, loader
        self._model: Any = None
        self._predictor: Predictor | None = None
        self._own_head: tuple[Tensor | None, Tensor | None] = (None, None)

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        was_made = self._model is not None
        self._model = self._predictor = None
        self._own_head = (None, None)
        if was_made and self.candidate.plan.parameters > _WORTH_COLLECTING:
            gc.collect()  # accelerate's hooks and transformers' modules point at each other
            if self.loader.device.type == "cuda":
                torch.cuda.empty_cache()

    @property
    def model(self) -> Any:
        """Raises JobError (slug "out-of-memory") where it does not fit after all."""
        if self._model is None:
            make, candidate = self.loader, self.candidate
            with translate_out_of_memory(1, make.device):
                if make.streams:
                    made = stream(candidate.plan, candidate.weights, dtype=make.dtype, device=make.device)
                    self._model, self._own_head = made[0], output_head(candidate.plan, made[1])
                else:
                    self._model = load(candidate.plan, candidate.weights, dtype=make.dtype, device=make.device)
        return self._model

    def kept(self, windows: Sequence[Window]) -> tuple[list[Tensor], Head]:
        """What is kept of the predictions in these windows, and the head that makes logits of it."""
        model = self.model
        if self._predictor is None:
            self._predictor = Predictor(model, self.loader.device)
        kept = self._predictor.kept(windows)
        return kept, self._predictor.head(*self._own_head)
