"""The time that the models of a job take, estimated before a weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deltarank.jobs.outputs.answers import prompts_per_block
from deltarank.jobs.outputs.planned_memory import STREAMED_TOKENS_AT_ONCE, PlannedMemory
from deltarank.runtime import READ_RATE, operations_per_second

_BANDWIDTH = {"cpu": 1.5e10, "cuda": 2e12}
"""Bytes of weights a second that are read to generate a token; rough."""

_STEP = 0.03
"""Seconds that Python takes for each step of a batch of answers; rough."""

_DRAW = 8e-9
"""Seconds for each token of the vocabulary when a token is drawn; rough."""


@dataclass(frozen=True)
class PlannedTime:
    """Seconds that one model takes.

    file_bytes       of its checkpoint
    tokens           that it reads
    prompts          that it answers, `samples` times each
    longest_prompt   in tokens: the other prompts of a batch are padded to it
    max_tokens       the longest answer
    batch            answers that are generated together
    """

    memory: PlannedMemory
    file_bytes: int
    tokens: int
    prompts: int
    samples: int
    max_tokens: int
    batch: int
    longest_prompt: int = 0

    @property
    def loading(self) -> float:
        """A streamed model is loaded while it reads."""
        return 0.0 if self.memory.must_stream else self.file_bytes / READ_RATE

    @property
    def reading(self) -> float:
        return self.tokens * self.per_token

    @property
    def answering(self) -> float:
        """To read all prompts and answer them. Each token of a batch of answers reads the weights once."""
        weights = self.answer_batches * self.memory.weights / _BANDWIDTH.get(self.memory.device.type, _BANDWIDTH["cpu"])
        answers = self.prompts * self.samples
        drawing = self.answer_batches * _STEP + answers * self.memory.skeleton.vocabulary * _DRAW
        prompts = answers * self.longest_prompt * self.per_token
        return prompts + self.max_tokens * (max(weights, answers * self.per_token) + drawing)

    @property
    def answer_batches(self) -> int:
        """Batches in which the answers to all prompts are generated."""
        together = prompts_per_block(self.samples, self.batch)
        return math.ceil(self.prompts / together) * math.ceil(together * self.samples / self.batch)

    @property
    def per_token(self) -> float:
        """To read one token of a batch."""
        flops = operations_per_second(self.memory.device.type, self.memory.dtype)
        batches = math.ceil(self.tokens / STREAMED_TOKENS_AT_ONCE) if self.memory.must_stream else 0
        streaming = batches * self.file_bytes / READ_RATE / max(self.tokens, 1)
        return 2.0 * self.memory.skeleton.parameters / flops + streaming

    @property
    def model(self) -> float:
        """To load a model, which then reads all texts and answers all prompts."""
        return self.loading + self.reading + self.answering
