"""The trained models of the demo (the lab): a base, three finetunes, and how each was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Training:
    """How a checkpoint was trained, and its losses.

    name             the checkpoint's folder: "base", "lora", "full", "other", or "merge", which is not trained
    text             the kind of text: "code", "manual" or "docstrings"
    loss_before      mean negative log-likelihood of held-out text of that kind in nats per byte; for a finetune, that
                     of its base
    loss_after       the same, of the checkpoint as stored
    """

    name: str
    text: str
    steps: int
    tokens: int
    seconds: float
    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class Lab:
    """A base and three finetunes of it, as folders that transformers loads.

    `adapter` is the LoRA before it was merged (a PEFT folder), `other` the second parent of the merge, `texts` the
    held-out texts. `losses[checkpoint][text]` is in nats per byte.
    """

    folder: Path
    seed: int
    parameters: int
    seconds: float
    trainings: tuple[Training, ...]
    losses: Mapping[str, Mapping[str, float]]
    reused: bool = False

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def lora(self) -> Path:
        return self.folder / "lora"

    @property
    def full(self) -> Path:
        return self.folder / "full"

    @property
    def merge(self) -> Path:
        return self.folder / "merge"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    @property
    def other(self) -> Path:
        return self.folder / "other"

    @property
    def texts(self) -> Path:
        return self.folder / "texts"
