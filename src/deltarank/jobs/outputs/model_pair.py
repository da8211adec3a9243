"""The base and the finetune as language models: which tensors belong together, and what their weights become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deltarank.adapters import Applied, LoraAdapter, apply_adapter
from deltarank.checkpoints import FLOAT_DTYPES, Checkpoint, Pair, Pairing, SummedTensor, pair_checkpoints
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.models import Edit, EditedWeights, ModelSkeleton, read_skeleton


@dataclass(frozen=True)
class ModelPair:
    """Two open checkpoints, their pairing and their configurations. No weight is read."""

    base: Checkpoint
    finetune: Checkpoint
    pairing: Pairing
    base_skeleton: ModelSkeleton
    finetune_skeleton: ModelSkeleton
    device: torch.device

    @classmethod
    def of(cls, base: Checkpoint, finetune: Checkpoint, options: OutputsOptions) -> ModelPair:
        """Raises what `pair_checkpoints` and `read_skeleton` raise."""
        pairing = pair_checkpoints(base, finetune)
        trust = options.trust_remote_code
        base_skeleton, finetune_skeleton = (read_skeleton(each, trust_remote_code=trust) for each in (base, finetune))
        return cls(base, finetune, pairing, base_skeleton, finetune_skeleton, options.torch_device)

    @property
    def context(self) -> int:
        """The longest text that both models take, in tokens."""
        return min(self.finetune_skeleton.context, self.base_skeleton.context)

    @property
    def common_tensors(self) -> tuple[Pair | SummedTensor, ...]:
        """All tensors that both have."""
        return (*self.pairing.pairs, *self.pairing.summed)

    @property
    def has_one_layout(self) -> bool:
        """Whether the finetune's matrices are stored as the base's, so that each can be replaced in its files."""
        stored = self.finetune.tensors
        return all(stored.get(name) is info for name, info in self.pairing.finetune.tensors.items())

    def apply_adapter(self, lora: LoraAdapter, server: str | None) -> Applied:
        """What an adapter changes in the base, as PEFT or the server applies it.

        Raises:
            AdapterError: it does not load, or does not fit the base.
        """
        applied = apply_adapter(lora, self.common_tensors, server=server, base=self.base)
        applied.check_loads_in_peft()
        return applied

    def finetune_weights(self, edits: Sequence[Edit] = ()) -> EditedWeights:
        return EditedWeights(self.finetune, edits, self.device)

    def base_weights(self, edits: Sequence[Edit] = ()) -> EditedWeights:
        return EditedWeights(self.base, edits, self.device)


def most_used_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The type that most of its numbers are stored in; float32 if that is no plain type."""
    entries = Counter[str]()
    for info in checkpoint.tensors.values():
        entries[info.dtype] += info.entries
    [(name, _)] = entries.most_common(1) or [("", 0)]
    return FLOAT_DTYPES.get(name, torch.float32)
