"""The memory that the models of a job need, estimated before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from deltarank.models import LOGITS_PER_CHUNK, ModelSkeleton
from deltarank.results import size

USABLE_SHARE = 0.85
"""Of the available memory. The rest is for the system, and for tensors that are being moved."""

_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}

STREAMED_TOKENS_AT_ONCE = 16384
"""Every batch reads a streamed model once, so a batch is as large as its activations allow."""

FEWEST_ANSWERS, MOST_ANSWERS = 8, 32
"""Generated together."""

_CACHE_BYTES = 1 << 30
"""Of keys and values while answers are generated."""

_FLOAT32_BYTES = torch.float32.itemsize

_COPIES_OF_A_TENSOR = 3
"""In float32 while a tensor is made: the base's, the delta or the finetune's, and their sum."""

_VECTORS_PER_TOKEN = 24
"""Activations for each token, in vectors of the hidden size; a rough bound."""

_CHUNKS_OF_LOGITS = 8
"""In float32 while two models are compared: the logits of both, and what is computed from them; a rough bound."""


@dataclass(frozen=True)
class PlannedMemory:
    """Bytes on the device, for one model at a time.

    skeleton         of the finetune
    largest_tensor   the number of its entries
    available        bytes on the device; None if unknown
    """

    skeleton: ModelSkeleton
    dtype: torch.dtype
    device: torch.device
    largest_tensor: int
    available: int | None

    @property
    def weights(self) -> int:
        """One model in the type that it runs in."""
        return self.skeleton.parameters * self.dtype.itemsize

    @property
    def head(self) -> int:
        """Its output head."""
        return self.skeleton.vocabulary * self.skeleton.hidden_size * self.dtype.itemsize

    @property
    def whole_model(self) -> int:
        """A model of which all is in memory: its weights, a tensor that is being made, and a batch."""
        return self.weights + self._tensor_in_the_making + self._batch(self._device_tokens_at_once)

    @property
    def must_stream(self) -> bool:
        """Whether a model does not fit into memory, so that the weights of a layer are made when the layer runs."""
        return self.available is not None and self.whole_model > USABLE_SHARE * self.available

    @property
    def peak(self) -> int:
        """Streamed models have the output heads of two models in memory in place of the weights."""
        if not self.must_stream:
            return self.whole_model
        return self._tensor_in_the_making + 2 * self.head + self._batch(STREAMED_TOKENS_AT_ONCE)

    @property
    def tokens_at_once(self) -> int:
        """The tokens of a batch."""
        if self.must_stream:
            return STREAMED_TOKENS_AT_ONCE
        most = self._device_tokens_at_once
        if not self.skeleton.changes_logits:
            return most
        return min(most, max(4 * LOGITS_PER_CHUNK // self.skeleton.vocabulary, 1))  # the model returns all its logits

    def answers_at_once(self, tokens: int) -> int:
        """How many answers of so many tokens, with their prompts, are generated together.

        Each token of a batch reads all weights, so a large batch is fast. Its keys and values have to fit.
        """
        fitting = _CACHE_BYTES // max(self.skeleton.cache_entries * self.dtype.itemsize * tokens, 1)
        return min(max(fitting, FEWEST_ANSWERS), MOST_ANSWERS)

    @property
    def sentence(self) -> str:
        """What a whole model needs, and what is available."""
        available = "an unknown amount" if self.available is None else size(self.available)
        return f"one needs {size(self.whole_model)}, {available} is available"

    @property
    def _device_tokens_at_once(self) -> int:
        return _TOKENS_AT_ONCE.get(self.device.type, _TOKENS_AT_ONCE["cpu"])

    @property
    def _tensor_in_the_making(self) -> int:
        return _COPIES_OF_A_TENSOR * _FLOAT32_BYTES * self.largest_tensor

    def _batch(self, tokens: int) -> int:
        """Activations of all tokens, and the logits of a few."""
        activations = tokens * self.skeleton.hidden_size * _VECTORS_PER_TOKEN * self.dtype.itemsize
        return activations + _CHUNKS_OF_LOGITS * _FLOAT32_BYTES * LOGITS_PER_CHUNK
