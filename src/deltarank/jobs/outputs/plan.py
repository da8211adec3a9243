"""What a job of `outputs` will do and need, known before a weight is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from deltarank.checkpoints import Checkpoint, Pairing
from deltarank.jobs.outputs.answers import AT_ONCE
from deltarank.jobs.outputs.low_rank import carried, nbytes_of
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.models import LOGITS_PER_CHUNK, ModelSkeleton
from deltarank.results import count, duration, listing, size
from deltarank.runtime import READ_RATE, make_plan
from deltarank.system import memory_limit

USABLE = 0.85
"""Of the memory there is: the rest is the system's, and of tensors on their way."""

WINDOW = 1024
"""Tokens of a document that a model reads at once, or its context if that is shorter."""

_FLOPS = {("cpu", 4): 4e10, ("cuda", 4): 3e13, ("cuda", 2): 3e14}
"""Operations a second in matrix products, by device and bytes of a number: rough."""

_BANDWIDTH = {"cpu": 1.5e10, "cuda": 2e12}
"""Bytes of weights a second that one written token reads: rough."""

_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}
_STREAMED_TOKENS = 16384
"""A streamed model is read once a batch, so a batch is as large as its activations allow."""


@dataclass(frozen=True)
class OutputsPlan:
    """Figures of a job; seconds and bytes are rough. `lines()` is for people, `to_plain()` for programs.

    documents        lengths in tokens of what is given as text
    answers          prompts x samples that each model writes
    streams          models do not fit whole: a layer's weights are made when it is run
    room             bytes of memory on the device
    """

    options: OutputsOptions
    base: Checkpoint
    finetune: Checkpoint
    skeleton: ModelSkeleton
    pairing: Pairing
    candidates: tuple[str, ...]
    documents: tuple[int, ...]
    prompts: int
    parts: int
    room: int | None
    notes: tuple[str, ...] = ()

    @property
    def answers(self) -> int:
        return self.prompts * self.options.samples

    @property
    def weights(self) -> int:
        """Bytes of one model in the dtype that it is run in."""
        return self.skeleton.parameters * self._itemsize

    @property
    def streams(self) -> bool:
        return self.room is not None and self.whole > USABLE * self.room

    @property
    def whole(self) -> float:
        """Bytes that a model needs with all of it in memory: its weights, a tensor being made, and a batch."""
        return self.weights + self._being_made + self._batch_memory(_TOKENS_AT_ONCE.get(self.options.device.type, 2048))

    @property
    def peak_memory(self) -> float:
        """Bytes on the device; streamed, there are the two output heads in place of the weights."""
        if not self.streams:
            return self.whole
        heads = 2.0 * self.skeleton.vocabulary * self.skeleton.hidden_size * self._itemsize
        return self._being_made + heads + self._batch_memory(_STREAMED_TOKENS)

    @property
    def tokens_at_once(self) -> int:
        """Of a batch."""
        if self.streams:
            return _STREAMED_TOKENS
        most = _TOKENS_AT_ONCE.get(self.options.device.type, 2048)
        # Where the head is not the end, whole logits leave the model.
        whole_logits = self.skeleton.softcaps_logits
        return min(most, max(4 * LOGITS_PER_CHUNK // self.skeleton.vocabulary, 1)) if whole_logits else most

    @property
    def _itemsize(self) -> int:
        return self.options.torch_dtype.itemsize

    @property
    def _being_made(self) -> float:
        """The largest tensor in float32: the base's, the delta or the finetune's, and their sum."""
        return 3.0 * 4 * max((info.entries for info in self.finetune.tensors.values()), default=0)

    def _batch_memory(self, tokens: int) -> float:
        """Some dozen vectors a token, and logits: a few at a time of those that exist in float32."""
        return tokens * self.skeleton.hidden_size * 24.0 * self._itemsize + 8.0 * 4 * LOGITS_PER_CHUNK

    @property
    def tokens(self) -> int:
        """Read by each model: what is given as text, and the finetune's answers at their longest."""
        return sum(self.documents) + self.answers * 2 * self.options.max_tokens

    @property
    def file_bytes(self) -> int:
        return sum(info.nbytes for info in self.finetune.tensors.values())

    @property
    def disk(self) -> float:
        """Bytes under RUN while the job goes on: factors, what is kept of predictions, scores."""
        kept = self.tokens * (self.skeleton.hidden_size * self._itemsize + 40.0 * len(self.candidates))
        head = self.skeleton.vocabulary * self.skeleton.hidden_size * self._itemsize
        return nbytes_of(carried(self.pairing.pairs), max(self.options.ranks)) + kept + head

    @cached_property
    def decomposing(self) -> float:
        """Seconds."""
        plan = make_plan(self.base, self.finetune, self.pairing, self.options.settings)
        return math.fsum(step.seconds for step in plan.steps) + plan.read_bytes / READ_RATE

    @property
    def loading(self) -> float:
        """Seconds to make one model whole."""
        return 0.0 if self.streams else self.file_bytes / READ_RATE

    @property
    def a_token(self) -> float:
        """Seconds for a token in a pass."""
        device, number = self.options.device.type, self._itemsize
        flops = _FLOPS.get((device, number), _FLOPS["cpu", 4])
        passes = math.ceil(self.tokens / _STREAMED_TOKENS) * self.file_bytes / READ_RATE if self.streams else 0.0
        return 2.0 * self.skeleton.parameters / flops + passes / max(self.tokens, 1)

    @property
    def a_prompt(self) -> float:
        """Seconds to answer one prompt, all samples of it: a token reads the weights once for all in a batch."""
        rate = _BANDWIDTH.get(self.options.device.type, _BANDWIDTH["cpu"])
        shared = min(self.options.samples / (self.options.batch or AT_ONCE), 1.0)
        return self.options.max_tokens * max(shared * self.weights / rate, self.options.samples * self.a_token)

    @property
    def seconds(self) -> float:
        parts = self.parts * self.tokens * self.a_token
        return self.decomposing + (len(self.candidates) + 1) * self._a_model + parts

    def lines(self) -> list[str]:
        how = "streamed, layer by layer" if self.streams else "loaded whole, one after another"
        models = f"{count(len(self.candidates) + 1, 'model')} of {duration(self._a_model)} each"
        return [
            *self._who(),
            *self._on_what(),
            *[f"note: {note}" for note in self.notes],
            "",
            f"Models are {how}: {self.figures}.",
            f"Memory on {self.options.device}: about {size(self.peak_memory)}; disk: about {size(self.disk)}.",
            f"Time, roughly: {duration(self.decomposing)} to decompose, then {models}: {duration(self.seconds)}.",
        ]

    def _who(self) -> list[str]:
        weights = f"{self.skeleton.parameters:,} parameters, {size(self.weights)} in {self.options.dtype}"
        return [
            f"finetune    {self.finetune.reference.ref}, {weights}",
            f"base        {self.base.reference.ref}",
            f"candidates  {listing(list(self.candidates), most=20)}",
        ]

    def _on_what(self) -> list[str]:
        text = f"{count(len(self.documents), 'document')}, {sum(self.documents):,} tokens" if self.documents else "none"
        written = (
            f"{count(self.prompts, 'prompt')} x {self.options.samples}, up to {self.options.max_tokens} tokens each"
        )
        parts = f"parts       {count(self.parts, self.options.attribute or 'part')}, one at a time"
        return [
            f"text        {text}",
            f"answers     {written if self.answers else 'none'}",
            *([parts] * bool(self.parts)),
        ]

    @property
    def figures(self) -> str:
        there = f"{size(self.room)} are there" if self.room else "how many are there is not known"
        return f"{size(self.whole)} are needed to hold one, {there}"

    @property
    def _a_model(self) -> float:
        return self.loading + self.tokens * self.a_token + self.prompts * bool(self.answers) * self.a_prompt

    def to_plain(self) -> dict[str, Any]:
        return {
            "options": self.options.to_plain(),
            "candidates": list(self.candidates),
            "documents": len(self.documents),
            "tokens": self.tokens,
            "prompts": self.prompts,
            "answers": self.answers,
            "parts": self.parts,
            "parameters": self.skeleton.parameters,
            "weights": self.weights,
            "streams": self.streams,
            "room": self.room,
            "peak_memory": self.peak_memory,
            "disk": self.disk,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def room_on(device: torch.device) -> int | None:
    """Bytes of memory that a model may take on this device, where that can be known: on CUDA, those that are free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory_limit()


def stored_dtype(checkpoint: Checkpoint, known: dict[str, torch.dtype]) -> torch.dtype:
    """The type of most of its numbers."""
    entries: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        entries[info.dtype] = entries.get(info.dtype, 0) + info.entries
    return known.get(max(entries, key=lambda dtype: entries[dtype], default=""), torch.float32)


def part_names(pairing: Pairing, unit: str | None) -> dict[str, list[str]]:
    """The matrices that go together, by the name of their part."""
    parts: dict[str, list[str]] = {}
    for pair in carried(pairing.pairs) if unit else ():
        layer = "no layer" if pair.layer is None else f"layer {pair.layer}"
        named: Sequence[tuple[str, str]] = (("module", pair.module), ("layer", layer), ("matrix", pair.name))
        parts.setdefault(dict(named)[unit or "matrix"], []).append(pair.name)
    return parts
