"""The model of one candidate: loaded when it is first needed, and dropped before the next one is loaded."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltarank.jobs.outputs.callbacks import OnLoaded
from deltarank.jobs.outputs.candidates import Candidate
from deltarank.models import (
    AnyModel,
    Head,
    Predictor,
    SharedLayers,
    Window,
    load_model,
    stream_model,
    translate_out_of_memory,
)

_LARGE_MODEL = 10_000_000
"""Parameters. A garbage collection takes most of a second; Python collects smaller models in time by itself."""


@dataclass(frozen=True)
class ModelLoader:
    """How models are loaded.

    streams          layer by layer while they run, because they do not fit into memory
    on_loaded        called once for each `LoadedModel`
    """

    device: torch.device
    dtype: torch.dtype
    streams: bool
    on_loaded: OnLoaded

    def load(self, candidate: Candidate) -> tuple[AnyModel, Head | None]:
        """The model, and its output head if the model is streamed and does not hold it.

        Raises:
            JobError: (slug "out-of-memory") it does not fit after all, or (slug "cannot-stream") see `stream_model`.
        """
        skeleton, weights = candidate.skeleton, candidate.weights
        with translate_out_of_memory(self.device):
            if self.streams:
                return stream_model(skeleton, weights, dtype=self.dtype, device=self.device)
            return load_model(skeleton, weights, dtype=self.dtype, device=self.device), None


class LoadedModel:
    """The model of a candidate. Leaving the `with` frees its memory."""

    def __init__(self, candidate: Candidate, loader: ModelLoader) -> None:
        self.candidate, self.loader = candidate, loader
        self._model: AnyModel = None
        self._predictor: Predictor | None = None
        self._shared: SharedLayers | None = None
        self._is_tried = False

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        was_loaded = self._model is not None
        if not was_loaded and error is None:
            self.loader.on_loaded(self.candidate.name, resumed=True)
        self._model = self._predictor = self._shared = None
        if was_loaded and self.candidate.skeleton.parameters > _LARGE_MODEL:
            gc.collect()  # accelerate's hooks and transformers' modules refer to each other
            if self.loader.device.type == "cuda":
                torch.cuda.empty_cache()

    @property
    def model(self) -> AnyModel:
        """Raises what `ModelLoader.load` raises."""
        return self._load()[0]

    def predict(self, windows: Sequence[Window]) -> tuple[list[Tensor], Head]:
        """For each window the inputs of the output head, and the head that turns them into logits."""
        _, predictor = self._load()
        head_inputs = predictor.head_inputs(windows)
        return head_inputs, predictor.head

    def shared_layers(self, windows: Sequence[Window]) -> SharedLayers | None:
        """For passes in which only the later layers change; None for a model that does not allow them.

        Args:
            windows: of which the first is tried, once for each model.
        """
        if not self._is_tried:
            shared = SharedLayers(*self._load())
            self._shared = shared if shared.holds(windows[:1]) else None
            self._is_tried = True
        return self._shared

    def _load(self) -> tuple[AnyModel, Predictor]:
        if self._predictor is None:
            self._model, streamed_head = self.loader.load(self.candidate)
            self._predictor = Predictor(self._model, self.loader.device, streamed_head)
            self.loader.on_loaded(self.candidate.name, resumed=False)
        return self._model, self._predictor
