"""Where the weights of a model are while it runs, and the memory that this takes. The fastest way that fits is taken.

All give the same numbers, to the rounding of sums: weights are converted to float32 for every product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltarank.checkpoints import Checkpoint
from deltarank.models import (
    AnyModel,
    EditedWeights,
    Head,
    ModelSkeleton,
    file_tensor_names,
    largest_layer,
    load_model,
    recompute_layers,
    stream_model,
    translate_out_of_memory,
)
from deltarank.results import WeightPlacement
from deltarank.system import free_large_blocks_at_once

STATES_OF_A_PARAMETER = 6
"""In float32: A or B, its gradient, its momentum, the best step, and copies on the way to disk."""

_ACTIVATIONS_PER_LAYER = 40
"""Vectors of the hidden size for each token, kept for the gradient; a rough bound."""

_CHUNKS_OF_LOGITS = 1 << 30
"""Bytes for the logits of both models and what is computed from them; a rough bound."""

_COPIES = 2
"""Of a weight in its stored dtype: as it was read, and rounded again for products in bfloat16."""


@dataclass(frozen=True)
class Footprint:
    """The memory of a base with an adapter that is trained. Bytes are estimates.

    trained       numbers in A and B
    stored_bytes  of the base's files
    can_stream    whether one layer of either model can be read without the others
    """

    skeleton: ModelSkeleton
    trained: int
    stored_bytes: int
    can_stream: bool

    @property
    def placements(self) -> Sequence[WeightPlacement]:
        """Those that are possible, the fastest first."""
        recomputed = (WeightPlacement.RECOMPUTED,) if self._layer else ()
        return (
            WeightPlacement.WHOLE,
            *recomputed,
            *((WeightPlacement.STORED, WeightPlacement.STREAMED) if self._streams else ()),
        )

    def choose(self, available: float | None) -> WeightPlacement:
        """The fastest that fits; the smallest if none does."""
        fitting = (each for each in self.placements if available is None or self.memory(each) <= available)
        return next(fitting, self.placements[-1])

    def memory(self, placement: WeightPlacement) -> int:
        """Bytes: weights, the finetune's output head, what the optimiser holds, and the activations of a batch."""
        trained = 4 * STATES_OF_A_PARAMETER * self.trained
        return round(self._weights(placement) + trained + self._activations(placement)) + _CHUNKS_OF_LOGITS

    def _weights(self, placement: WeightPlacement) -> float:
        if not placement.converts:
            return 4 * (self.skeleton.parameters + self.head_numbers)
        stored = self.stored_bytes / max(self.skeleton.parameters, 1)
        made = max(self._layer * (4 + _COPIES * stored), self.head_numbers * (4 + stored))
        kept = self.stored_bytes if placement is WeightPlacement.STORED else self.head_numbers * stored
        return made + kept + self.head_numbers * stored

    def _activations(self, placement: WeightPlacement) -> int:
        """Of all layers; or the inputs of all layers, and all of one layer."""
        vectors = self.layers * _ACTIVATIONS_PER_LAYER
        if placement is not WeightPlacement.WHOLE:
            vectors = self.layers + _ACTIVATIONS_PER_LAYER
        return 4 * placement.tokens_at_once * self.skeleton.hidden_size * vectors

    @property
    def layers(self) -> int:
        return int(getattr(self.skeleton.config.get_text_config(), "num_hidden_layers", 0) or 1)

    @property
    def head_numbers(self) -> int:
        return self.skeleton.vocabulary * self.skeleton.hidden_size

    @property
    def _layer(self) -> int:
        return largest_layer(self.skeleton.meta_model)

    @property
    def _streams(self) -> bool:
        return self.can_stream and self._layer > 0


def can_stream(models: Sequence[tuple[ModelSkeleton, Checkpoint]]) -> bool:
    """Whether every tensor of these models is one of the files'. Experts that transformers fuses are not."""
    cpu = torch.device("cpu")
    return all(file_tensor_names(skeleton, EditedWeights(each, [], cpu)) is not None for skeleton, each in models)


def load_placed(
    skeleton: ModelSkeleton,
    checkpoint: Checkpoint,
    placement: WeightPlacement,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> tuple[AnyModel, Head | None]:
    """The model, and its output head if the model does not hold it.

    Args:
        dtype: of the weights as they are multiplied.

    Raises:
        JobError: (slug "out-of-memory") it does not fit after all.
        CheckpointError: a tensor cannot be read, or is missing.
    """
    if placement is not WeightPlacement.WHOLE:
        free_large_blocks_at_once()
    weights, head = EditedWeights(checkpoint, [], device), None
    with translate_out_of_memory(device):
        if placement.converts:
            keeps = placement is WeightPlacement.STORED
            model, head = stream_model(skeleton, weights, dtype=dtype, device=device, keeps=keeps)
        else:
            model = load_model(skeleton, weights, dtype=dtype, device=device)
    if placement is not WeightPlacement.WHOLE:
        recompute_layers(model)
    return model, head


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    known = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return device.type == "cpu" and any(supported() for supported in known if supported is not None)
