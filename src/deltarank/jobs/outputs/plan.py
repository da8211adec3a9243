"""What a job of `outputs` will do, and the memory, disk and time that it needs, known before a weight is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from deltarank.jobs.outputs.answers import DEFAULT_BATCH
from deltarank.jobs.outputs.attribution import matrices_by_part
from deltarank.jobs.outputs.candidate_names import candidate_names
from deltarank.jobs.outputs.inputs import OutputsInputs
from deltarank.jobs.outputs.low_rank import factor_bytes, lora_matrices
from deltarank.jobs.outputs.model_pair import ModelPair
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.models import LOGITS_PER_CHUNK
from deltarank.results import count, duration, listing, size
from deltarank.runtime import READ_RATE, Plan, make_plan

USABLE_SHARE = 0.85
"""Of the available memory. The rest is for the system, and for tensors that are being moved."""

_FLOPS = {("cpu", 4): 4e10, ("cuda", 4): 3e13, ("cuda", 2): 3e14}
"""Operations a second in matrix products, by device and bytes of a number; rough."""

_BANDWIDTH = {"cpu": 1.5e10, "cuda": 2e12}
"""Bytes of weights a second that are read to generate a token; rough."""

_TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 8192}

_STREAMED_TOKENS_AT_ONCE = 16384
"""Every batch reads a streamed model once, so a batch is as large as its activations allow."""


@dataclass(frozen=True)
class OutputsPlan:
    """The plan of a job. Seconds and bytes are estimates. `lines()` is for people, `to_plain()` for programs.

    available_memory  bytes on the device; None if unknown
    """

    options: OutputsOptions
    models: ModelPair
    inputs: OutputsInputs
    available_memory: int | None

    @property
    def candidates(self) -> tuple[str, ...]:
        return candidate_names(self.options)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.inputs.notes

    @cached_property
    def documents(self) -> tuple[int, ...]:
        """The lengths, in tokens, of the documents of all texts that were given."""
        return tuple(len(document.ids) for _, documents in self.inputs.texts for document in documents)

    @property
    def prompts(self) -> int:
        return len(self.inputs.prompts)

    @property
    def answers(self) -> int:
        """How many each model generates."""
        return self.prompts * self.options.samples

    @property
    def tokens(self) -> int:
        """How many each model reads: the documents, and the finetune's answers at their longest."""
        return sum(self.documents) + self.answers * 2 * self.options.max_tokens

    @cached_property
    def parts(self) -> int:
        """How many parts are truncated one at a time."""
        unit = self.options.attribute
        return len(matrices_by_part(self.models.pairing, unit)) if unit else 0

    # ---- memory and disk

    @property
    def streams(self) -> bool:
        """Whether a model does not fit into memory, so that the weights of a layer are made when the layer runs."""
        return self.available_memory is not None and self.whole_model_memory > USABLE_SHARE * self.available_memory

    @property
    def weight_bytes(self) -> int:
        """Bytes of one model in the type that it runs in."""
        return self.models.finetune_skeleton.parameters * self._itemsize

    @property
    def whole_model_memory(self) -> float:
        """Bytes that a model needs if all of it is in memory: weights, a tensor that is being made, and a batch."""
        return self.weight_bytes + self._making_memory + self._batch_memory(self._device_tokens_at_once)

    @property
    def peak_memory(self) -> float:
        """Bytes on the device. Streamed models have the output heads of two models there in place of the weights."""
        if not self.streams:
            return self.whole_model_memory
        return self._making_memory + 2.0 * self._head_bytes + self._batch_memory(_STREAMED_TOKENS_AT_ONCE)

    @property
    def tokens_at_once(self) -> int:
        """The tokens of a batch."""
        if self.streams:
            return _STREAMED_TOKENS_AT_ONCE
        skeleton, most = self.models.finetune_skeleton, self._device_tokens_at_once
        if not skeleton.softcaps_logits:
            return most
        return min(most, max(4 * LOGITS_PER_CHUNK // skeleton.vocabulary, 1))  # the model returns all its logits

    @property
    def disk_bytes(self) -> float:
        """Bytes in the run's folder while the job runs: factors, predictions of the finetune, its head, scores."""
        per_token = self.models.finetune_skeleton.hidden_size * self._itemsize + 40.0 * len(self.candidates)
        factors = factor_bytes(lora_matrices(self.models.pairing.pairs), max(self.options.ranks))
        return factors + self.tokens * per_token + self._head_bytes

    @property
    def _device_tokens_at_once(self) -> int:
        return _TOKENS_AT_ONCE.get(self._device_type, _TOKENS_AT_ONCE["cpu"])

    @property
    def _making_memory(self) -> float:
        """The largest tensor in float32, three times: the base's, the delta or the finetune's, and their sum."""
        return 3.0 * 4 * max((info.entries for info in self.models.finetune.tensors.values()), default=0)

    @property
    def _head_bytes(self) -> int:
        skeleton = self.models.finetune_skeleton
        return skeleton.vocabulary * skeleton.hidden_size * self._itemsize

    def _batch_memory(self, tokens: int) -> float:
        """Some dozen vectors for each token, and the few logits that exist in float32 at a time."""
        return tokens * self.models.finetune_skeleton.hidden_size * 24.0 * self._itemsize + 8.0 * 4 * LOGITS_PER_CHUNK

    # ---- time

    @cached_property
    def decomposition(self) -> Plan:
        """The pass over the matrices that finds their factors."""
        pairing = self.models.pairing
        pairing = replace(pairing, pairs=lora_matrices(pairing.pairs), summed=())
        return make_plan(self.models.base, self.models.finetune, pairing, self.options.solver_options)

    @property
    def seconds_per_token(self) -> float:
        """To read one token of a batch."""
        flops = _FLOPS.get((self._device_type, self._itemsize), _FLOPS["cpu", 4])
        batches = math.ceil(self.tokens / _STREAMED_TOKENS_AT_ONCE) if self.streams else 0
        streaming = batches * self._file_bytes / READ_RATE / max(self.tokens, 1)
        return 2.0 * self.models.finetune_skeleton.parameters / flops + streaming

    @property
    def seconds_per_prompt(self) -> float:
        """To generate all answers to one prompt. Each token reads the weights once for all answers of a batch."""
        rate = _BANDWIDTH.get(self._device_type, _BANDWIDTH["cpu"])
        samples = self.options.samples
        batches = min(samples / (self.options.batch or DEFAULT_BATCH), 1.0)
        return self.options.max_tokens * max(batches * self.weight_bytes / rate, samples * self.seconds_per_token)

    @property
    def seconds_per_model(self) -> float:
        loading = 0.0 if self.streams else self._file_bytes / READ_RATE
        return loading + self.tokens * self.seconds_per_token + self.prompts * self.seconds_per_prompt

    @property
    def seconds(self) -> float:
        models = (len(self.candidates) + 1) * self.seconds_per_model
        return self.decomposition.seconds + models + self.parts * self.tokens * self.seconds_per_token

    @property
    def _file_bytes(self) -> int:
        return sum(info.nbytes for info in self.models.finetune.tensors.values())

    @property
    def _itemsize(self) -> int:
        return self.options.torch_dtype.itemsize

    @property
    def _device_type(self) -> str:
        return self.options.torch_device.type

    # ---- as text and as JSON

    def lines(self) -> list[str]:
        how = "streamed, layer by layer" if self.streams else "loaded whole, one after another"
        memory, decomposition = size(self.peak_memory), duration(self.decomposition.seconds)
        models = f"{count(len(self.candidates) + 1, 'model')} of {duration(self.seconds_per_model)} each"
        return [
            *self._input_lines(),
            *[f"note: {note}" for note in self.notes],
            "",
            f"Models are {how}: {self.memory_sentence}.",
            f"Peak memory on {self.options.device}: about {memory}. Disk space: about {size(self.disk_bytes)}.",
            f"Estimated time: {duration(self.seconds)} (decomposition {decomposition}, then {models}).",
        ]

    def _input_lines(self) -> list[str]:
        options, documents = self.options, self.documents
        parameters = f"{self.models.finetune_skeleton.parameters:,} parameters"
        weights = f"{size(self.weight_bytes)} in {options.dtype}"
        text = f"{count(len(documents), 'document')}, {sum(documents):,} tokens" if documents else "none"
        answers = f"{count(self.prompts, 'prompt')} x {options.samples}, up to {options.max_tokens} tokens each"
        lines = [
            f"finetune    {self.models.finetune.reference.ref}, {parameters}, {weights}",
            f"base        {self.models.base.reference.ref}",
            f"candidates  {listing(list(self.candidates), most=20)}",
            f"text        {text}",
            f"answers     {answers if self.answers else 'none'}",
        ]
        if options.attribute:
            lines.append(f"parts       {count(self.parts, options.attribute)}, one at a time")
        return lines

    @property
    def memory_sentence(self) -> str:
        """The memory that a whole model needs, and what is available."""
        available = "an unknown amount" if self.available_memory is None else size(self.available_memory)
        return f"one needs {size(self.whole_model_memory)}, {available} is available"

    def to_plain(self) -> dict[str, Any]:
        return {
            "settings": self.options.to_plain(),
            "candidates": list(self.candidates),
            "documents": len(self.documents),
            "tokens": self.tokens,
            "prompts": self.prompts,
            "answers": self.answers,
            "parts": self.parts,
            "parameters": self.models.finetune_skeleton.parameters,
            "weights": self.weight_bytes,
            "streams": self.streams,
            "room": self.available_memory,
            "peak_memory": self.peak_memory,
            "disk": self.disk_bytes,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }
