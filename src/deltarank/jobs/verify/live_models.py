"""What the base, and the base with the adapter, predict after some prompts: all log-probabilities of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from deltarank.adapters import Applied, Change, LoraAdapter, LoraUpdate
from deltarank.checkpoints import Checkpoint
from deltarank.models import (
    Edit,
    EditedWeights,
    Predictor,
    ServedTokens,
    Window,
    load_model,
    load_tokenizer_of,
    read_skeleton,
    stream_model,
    translate_out_of_memory,
)
from deltarank.runtime import available_memory

_BYTES_PER_WEIGHT = 4
_SHARE_OF_MEMORY = 0.5
"""A model that takes more than this of the memory is streamed from its files: once for all prompts."""


def adapter_edits(adapter: LoraAdapter, applied: Applied, device: torch.device) -> list[Edit]:
    """What turns the base's weights into those with the adapter.

    Raises:
        AdapterError: PEFT would not load it as it is.
    """
    applied.check_loads_in_peft()
    heads = {head.name: head for head in applied.untied}
    targets = {name: changes[0].placement.target for name, changes in applied.changes.items()} | heads
    return [
        Edit(
            target.base,
            partial(_add, adapter, applied.changes.get(name, ()), device),
            new_tensor=name if name in heads else None,
        )
        for name, target in targets.items()
    ]


def _add(adapter: LoraAdapter, changes: Sequence[Change], device: torch.device, base: Tensor) -> Tensor:
    """W0 plus what the adapter adds."""
    return base + LoraUpdate(adapter, changes, device=device, dtype=torch.float32).rows(0, base)


class LocalModels:
    """The base and the edits that make it base + adapter, and the base's tokenizer.

    Raises:
        CheckpointError, UsageError, JobError: the base cannot be run, or has no tokenizer.
    """

    def __init__(self, base: Checkpoint, edits: Sequence[Edit], device: torch.device) -> None:
        self._base, self._edits, self._device = base, edits, device
        self._skeleton = read_skeleton(base)
        self.tokens = ServedTokens(load_tokenizer_of(self._skeleton))

    @property
    def context(self) -> int:
        """The longest text that the base takes, in tokens."""
        return self._skeleton.context

    def predict(self, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the next token in float64, (texts, vocabulary): the base's, and base + adapter's."""
        return self._predict(texts, ()), self._predict(texts, self._edits)

    def _predict(self, texts: Sequence[Sequence[int]], edits: Sequence[Edit]) -> Tensor:
        weights, dtype, device = EditedWeights(self._base, edits, self._device), torch.float32, self._device
        head = None
        with translate_out_of_memory(device):
            if self._fits():
                model = load_model(self._skeleton, weights, dtype=dtype, device=device)
            else:
                model, head = stream_model(self._skeleton, weights, dtype=dtype, device=device)
        predictor = Predictor(model, device, head)
        inputs = predictor.head_inputs([Window(tuple(ids), (len(ids) - 1,)) for ids in texts])
        with torch.inference_mode():
            return torch.log_softmax(predictor.head.logits(torch.cat(inputs)).double(), -1).cpu()

    def _fits(self) -> bool:
        memory = available_memory(self._device)
        return memory is None or _BYTES_PER_WEIGHT * self._skeleton.parameters < _SHARE_OF_MEMORY * memory
