"""A LoRA adapter that is the finetune of a run: what of its file is added to the base."""

from __future__ import annotations

from dataclasses import dataclass

from deltarank.results.codec import Count, Rank


@dataclass(frozen=True)
class AddedAdapter:
    """The adapter that is added to the base when the finetune is read.

    ranks       of its LoRAs, ascending
    parameters  the numbers in its file
    unloaded    those of them that PEFT does not load, so that they change nothing
    """

    ranks: tuple[Rank, ...]
    parameters: Count
    unloaded: Count = 0

    @property
    def unloaded_share(self) -> float:
        return self.unloaded / self.parameters if self.parameters else 0.0
