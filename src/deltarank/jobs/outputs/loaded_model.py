"""A candidate's model: its model is made when it is first needed, and gone before the next one's is."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.jobs.outputs.candidates import Candidate
from deltarank.models import AnyModel, Head, Predictor, Window, load_model, stream_model, translate_out_of_memory

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
        self._model: AnyModel = None
        self._predictor: Predictor | None = None
        self._streamed_head: Head | None = None

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        was_made = self._model is not None
        self._model = self._predictor = self._streamed_head = None
        if was_made and self.candidate.skeleton.parameters > _WORTH_COLLECTING:
            gc.collect()  # accelerate's hooks and transformers' modules point at each other
            if self.loader.device.type == "cuda":
                torch.cuda.empty_cache()

    @property
    def model(self) -> AnyModel:
        """Raises JobError (slug "out-of-memory") where it does not fit after all."""
        if self._model is None:
            skeleton, weights = self.candidate.skeleton, self.candidate.weights
            dtype, device = self.loader.dtype, self.loader.device
            with translate_out_of_memory(device):
                if self.loader.streams:
                    self._model, self._streamed_head = stream_model(skeleton, weights, dtype=dtype, device=device)
                else:
                    self._model = load_model(skeleton, weights, dtype=dtype, device=device)
        return self._model

    def predict(self, windows: Sequence[Window]) -> tuple[list[Tensor], Head]:
        """For each window the inputs of the output head, and the head that turns them into logits."""
        model = self.model
        if self._predictor is None:
            self._predictor = Predictor(model, self.loader.device, self._streamed_head)
        head_inputs = self._predictor.head_inputs(windows)
        return head_inputs, self._predictor.head
