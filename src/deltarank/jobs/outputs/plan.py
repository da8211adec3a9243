"""What a job of `outputs` will do, and the memory, disk and time that it needs, known before a weight is read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from deltarank.jobs.outputs.attribution import loaded_models, matrices_by_part
from deltarank.jobs.outputs.candidate_names import answers_prompts, candidate_kinds, rank_name, truncation_name
from deltarank.jobs.outputs.inputs import OutputsInputs
from deltarank.jobs.outputs.low_rank import factor_bytes, lora_matrices
from deltarank.jobs.outputs.model_pair import ModelPair
from deltarank.jobs.outputs.options import OutputsOptions
from deltarank.jobs.outputs.planned_memory import PlannedMemory
from deltarank.jobs.outputs.planned_time import PlannedTime
from deltarank.jobs.outputs.quick import quick_note
from deltarank.results import CandidateKind, Outputs, ShownAsLines, count, duration, headline_rank, listing, size
from deltarank.runtime import FIXED_MEMORY, Plan, SolverOptions, make_plan

_SCORE_BYTES = 40
"""Of one token in the file of a candidate's scores."""


START_UP_SECONDS = 8.0
"""To import the libraries that run models, and to write the page: what a command takes beside the work. Rough."""

_DOCUMENTS_OF_A_PART = 40
"""On which a truncated part is scored; the widths of intervals decide, so this is rough."""

_SECONDS_TO_SUMMARISE = 1.0
"""The scores and answers of one candidate; rough."""


@dataclass(frozen=True, repr=False)
class OutputsPlan(ShownAsLines):
    """The plan of a job. Seconds and bytes are estimates. `lines()` is for people, `to_plain()` for programs.

    available_memory  bytes on the device; None if unknown
    only              names of the candidates that are measured; None: all
    earlier           finished outputs that the candidates are added to: those that it has are not measured again
    """

    options: OutputsOptions
    models: ModelPair
    inputs: OutputsInputs
    available_memory: int | None
    only: Collection[str] | None = None
    earlier: Outputs | None = None

    @property
    def candidates(self) -> tuple[str, ...]:
        """Those that are measured."""
        return tuple(name for name, _ in self._candidate_kinds)

    @property
    def _candidate_kinds(self) -> tuple[tuple[str, CandidateKind], ...]:
        kinds = candidate_kinds(self.options, self.truncated_rank, self.taken_names)
        return kinds if self.only is None else tuple(each for each in kinds if each[0] in self.only)

    @cached_property
    def taken_names(self) -> frozenset[str]:
        """Of the candidates that were measured earlier."""
        return frozenset(each.name for each in self.earlier.candidates) if self.earlier else frozenset()

    @property
    def decomposed_ranks(self) -> tuple[int, ...]:
        """The ranks of the candidates that need factors."""
        names = {rank_name(rank): rank for rank in self.options.ranks}
        if self.truncated_rank is not None:
            names[truncation_name(self.truncated_rank)] = self.truncated_rank
        return tuple(sorted({names[each] for each in self.candidates if each in names}))

    @cached_property
    def headline_rank(self) -> int:
        """The rank that the verdict is about."""
        largest_side = max((min(pair.shape) for pair in self.models.pairing.pairs), default=0)
        return headline_rank(self.options.ranks, largest_side)

    @property
    def truncated_rank(self) -> int | None:
        """The rank of the candidate of truncation alone.

        None if the finetune's matrices are not stored as the base's: its files have no matrix to replace then. A quick
        measurement leaves it out, unless parts are measured, whose sum it is compared with.
        """
        if not self.models.has_one_layout or (self.options.quick and not self.options.attribute):
            return None
        return self.headline_rank

    @property
    def notes(self) -> tuple[str, ...]:
        return (*self.inputs.notes, *self._notes_on_candidates())

    def _notes_on_candidates(self) -> Iterator[str]:
        if self.options.quick:
            yield quick_note(self.options, self.prompt_count)
        if not self.models.has_one_layout:
            yield (
                "truncation alone is not measured, because the finetune stores projections fused, split or named "
                "otherwise than the base"
            )

    @cached_property
    def document_lengths(self) -> tuple[int, ...]:
        """In tokens, of all texts that were given."""
        return tuple(len(document.ids) for _, documents in self.inputs.texts for document in documents)

    @cached_property
    def prompt_lengths(self) -> tuple[int, ...]:
        """In tokens."""
        return tuple(len(prompt.ids(self.inputs.tokenizer)) for prompt in self.inputs.prompts)

    @property
    def prompt_count(self) -> int:
        return len(self.inputs.prompts)

    @property
    def answer_count(self) -> int:
        """How many answers each model generates."""
        return self.prompt_count * self.options.samples

    @property
    def tokens_per_model(self) -> int:
        """How many each model reads: the documents, and the finetune's answers at their longest."""
        return sum(self.document_lengths) + self._answer_tokens

    @cached_property
    def part_count(self) -> int:
        """How many parts are truncated one at a time."""
        unit = None if self.earlier else self.options.attribute
        return len(matrices_by_part(self.models.pairing, unit)) if unit else 0

    @cached_property
    def memory(self) -> PlannedMemory:
        """Of one model."""
        largest_tensor = max((info.entries for info in self.models.finetune.tensors.values()), default=0)
        options, skeleton = self.options, self.models.finetune_skeleton
        return PlannedMemory(skeleton, options.torch_dtype, options.torch_device, largest_tensor, self.available_memory)

    @property
    def answers_at_once(self) -> int:
        """Answers that are generated together."""
        return self.options.batch or self.memory.answers_at_once(2 * self.options.max_tokens)

    @cached_property
    def time(self) -> PlannedTime:
        """Of one model."""
        return PlannedTime(
            self.memory,
            file_bytes=sum(info.nbytes for info in self.models.finetune.tensors.values()),
            tokens=self.tokens_per_model,
            prompts=self.prompt_count,
            samples=self.options.samples,
            max_tokens=self.options.max_tokens,
            batch=self.answers_at_once,
            longest_prompt=max(self.prompt_lengths, default=0),
        )

    @cached_property
    def decomposition(self) -> Plan:
        """The pass over the matrices that finds their factors; none if no candidate needs any."""
        pairing, ranks = self.models.pairing, self.decomposed_ranks
        options = SolverOptions(ranks=ranks or self.options.ranks, device=self.options.device)
        pairing = replace(pairing, pairs=lora_matrices(pairing.pairs) if ranks else (), summed=())
        return make_plan(self.models.base, self.models.finetune, pairing, options)

    @property
    def peak_memory(self) -> float:
        """Bytes on the device: of the decomposition or of a model, of which the first ends before the second begins."""
        decomposition = max((step.memory for step in self.decomposition.steps), default=0.0)
        if self.options.torch_device.type == "cpu":
            decomposition += FIXED_MEMORY
        return max(decomposition, float(self.memory.peak))

    @property
    def disk_bytes(self) -> float:
        """Bytes in the run's folder while the job runs: factors, predictions of the finetune, its head, scores."""
        prediction_bytes = self.models.finetune_skeleton.hidden_size * self.options.torch_dtype.itemsize
        per_token = prediction_bytes + float(_SCORE_BYTES) * len(self.candidates)
        factors = factor_bytes(lora_matrices(self.models.pairing.pairs), max(self.decomposed_ranks, default=0))
        return factors + self.tokens_per_model * per_token + self.memory.head

    @property
    def seconds(self) -> float:
        controls = sum(kind is CandidateKind.CONTROL for _, kind in self._candidate_kinds)
        models = (len(self.candidates) + 1) * self.time.loading + controls * self.seconds_per_control
        models += (len(self.candidates) + 1 - controls) * self.time.reading
        answers = self._answering_models * self.time.answering
        return self.decomposition.work_seconds + models + answers + self._attribution_seconds + self.summary_seconds

    @property
    def summary_seconds(self) -> float:
        """To summarise the scores and to tell the answers apart."""
        return _SECONDS_TO_SUMMARISE * len(self.candidates)

    @property
    def seconds_per_control(self) -> float:
        """To read a part of each text."""
        given = [sum(len(document.ids) for document in documents) for _, documents in self.inputs.texts]
        return (
            sum(min(tokens, self.options.control_tokens) for tokens in (*given, self._answer_tokens))
            * self.time.per_token
        )

    @property
    def seconds_per_part(self) -> float:
        """To read some of the finetune's answers, or of the first text; for a layer, half of the layers on average."""
        first_text = [len(document.ids) for _, documents in self.inputs.texts[:1] for document in documents]
        documents = self.answer_count or len(first_text)
        tokens = (self._answer_tokens or sum(first_text)) * min(1.0, _DOCUMENTS_OF_A_PART / max(documents, 1))
        whole = tokens * self.time.per_token
        return whole / 2 if self.options.attribute == "layer" and not self.memory.must_stream else whole

    @property
    def _answer_tokens(self) -> int:
        """Of all answers of a model at their longest, with their prompts."""
        return self.options.samples * sum(self.prompt_lengths) + self.answer_count * self.options.max_tokens

    @property
    def _answering_models(self) -> int:
        """The finetune answers twice, unless it did earlier, and each candidate once that answers at all."""
        finetune = 0 if self.earlier else 2
        return finetune + sum(answers_prompts(*each, self.options) for each in self._candidate_kinds)

    @property
    def _attribution_seconds(self) -> float:
        """All parts at once are a candidate, which is scored anyway."""
        if not self.part_count:
            return 0.0
        loading = loaded_models(self.models, self.part_count) * self.time.loading
        return loading + self.part_count * self.seconds_per_part

    def opening_line(self, before: float) -> str:
        """`before`: seconds in which the weights are measured first; 0 if they are known."""
        models = count(len(self.candidates) + 1, "model")
        weights = f" ({duration(before)} of it for the weights)" if before else ""
        return f"{models} to run. Estimated time: {duration(START_UP_SECONDS + before + self.seconds)}{weights}."

    def lines(self) -> list[str]:
        if not self.candidates:
            return ["There is nothing to measure: the run has all of these candidates."]
        how = "streamed, layer by layer" if self.memory.must_stream else "loaded whole, one after another"
        memory, decomposition = size(self.peak_memory), duration(self.decomposition.work_seconds)
        time = duration(START_UP_SECONDS + self.seconds)
        models = f"{count(len(self.candidates) + 1, 'model')} of {duration(self.time.model)} each"
        return [
            *self._input_lines(),
            *[f"note: {note}" for note in self.notes],
            "",
            f"Models are {how}: {self.memory.sentence}.",
            f"Peak memory on {self.options.device}: about {memory}. Disk space: about {size(self.disk_bytes)}.",
            f"Estimated time: {time} (decomposition {decomposition}, then {models}).",
        ]

    def _input_lines(self) -> list[str]:
        options, lengths = self.options, self.document_lengths
        parameters = f"{self.models.finetune_skeleton.parameters:,} parameters"
        weights = f"{size(self.memory.weights)} in {options.dtype}"
        text = f"{count(len(lengths), 'document')}, {sum(lengths):,} tokens" if lengths else "none"
        answers = f"{count(self.prompt_count, 'prompt')} x {options.samples}, up to {options.max_tokens} tokens each"
        earlier = "" if self.earlier is None else f" (added to {count(len(self.earlier.candidates), 'earlier one')})"
        lines = [
            f"finetune    {self.models.finetune.reference.ref}, {parameters}, {weights}",
            f"base        {self.models.base.reference.ref}",
            f"candidates  {listing(list(self.candidates), most=20)}{earlier}",
            f"text        {text}",
            f"answers     {answers if self.answer_count else 'none'}",
        ]
        if options.attribute and self.part_count:
            lines.append(f"parts       {count(self.part_count, options.attribute)}, one at a time")
        return lines

    def to_plain(self) -> dict[str, Any]:
        return {
            "settings": self.options.to_plain(),
            "candidates": list(self.candidates),
            "documents": len(self.document_lengths),
            "tokens": self.tokens_per_model,
            "prompts": self.prompt_count,
            "answers": self.answer_count,
            "parts": self.part_count,
            "parameters": self.models.finetune_skeleton.parameters,
            "weights": self.memory.weights,
            "streams": self.memory.must_stream,
            "room": self.available_memory,
            "peak_memory": self.peak_memory,
            "disk": self.disk_bytes,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }
