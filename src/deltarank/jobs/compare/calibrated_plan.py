"""The plan of a comparison with a calibration text: what the finetune reads, in how many passes, in what memory.

Imports transformers, so it is imported only where a calibration text is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from deltarank.activations import CalibrationDocuments, RunnableModel, read_documents
from deltarank.checkpoints import Checkpoint, Pair
from deltarank.errors import DeltarankError, JobError
from deltarank.jobs.compare.options import CompareOptions
from deltarank.results import CalibrationText, count, duration, size
from deltarank.runtime import FIXED_MEMORY, READ_RATE, Plan, available_memory, operations_per_second
from deltarank.spectra import factorisation_cost

_USABLE_SHARE = 0.85
"""Of the available memory. The rest is for the system, and for tensors that are being moved."""

_MOST_GRAM_BYTES = 16e9
"""Of the Gram matrices of one pass, where no limit of the memory is known."""

_NUMBER_BYTES = 4
_VECTORS_PER_TOKEN = 24
"""Activations for each token of a document, in vectors of the hidden size; a rough bound."""

_COPIES_OF_A_MATRIX = 3
"""D, its residual and their product with the inputs' Gram matrix."""


@dataclass(frozen=True)
class ActivationPlan:
    """The passes of the finetune over the text.

    pairs      the matrices that take part, in order
    ranks      of the run
    available  bytes on the device; None if unknown
    """

    text: CalibrationDocuments
    model: RunnableModel
    pairs: tuple[Pair, ...]
    ranks: tuple[int, ...]
    available: int | None

    @cached_property
    def passes(self) -> tuple[tuple[Pair, ...], ...]:
        """The matrices whose inputs are summed in each pass: as many as fit into memory at a time."""
        room = _MOST_GRAM_BYTES if self.available is None else _USABLE_SHARE * self.available - self._other_bytes
        passes: list[list[Pair]] = []
        used = 0.0
        for pair in self.pairs:
            needed = self._gram_bytes(pair)
            if not passes or used + needed > room:
                passes.append([])
                used = 0.0
            passes[-1].append(pair)
            used += needed
        return tuple(map(tuple, passes))

    @property
    def peak_memory(self) -> float:
        return self._other_bytes + max((self._bytes_of(each) for each in self.passes), default=0.0)

    @property
    def seconds(self) -> float:
        return self.seconds_per_pass * len(self.passes) + math.fsum(map(self.matrix_seconds, self.pairs))

    @cached_property
    def seconds_per_pass(self) -> float:
        """To read the text, and to sum up inputs; the time to load the model is spread over the passes."""
        number = max(len(self.passes), 1)
        grams = math.fsum(map(self._gram_entries, self.pairs)) / number
        work = 2.0 * self.text.tokens * (self.model.skeleton.parameters + grams)
        return work / operations_per_second(self.model.device.type) + self.model.weight_bytes / READ_RATE / number

    def matrix_seconds(self, pair: Pair) -> float:
        """To find the factors of one matrix, and what they lose."""
        rows, columns = pair.shape
        rank = max(self.ranks)
        flops = operations_per_second(self.model.device.type)
        products = 2.0 * rows * columns * (max(rows, columns) + 2 * min(rank, rows, columns)) / flops
        return factorisation_cost(rows, columns, rank, self.model.device).seconds + products + pair.nbytes / READ_RATE

    @property
    def text_read(self) -> CalibrationText:
        is_stateful = bool(self.model.skeleton.meta_model._is_stateful)
        return CalibrationText(self.text.name, len(self.text.documents), self.text.tokens, is_stateful)

    @property
    def line(self) -> str:
        passes = "once" if len(self.passes) == 1 else f"{len(self.passes):,} times"
        dtype = str(self.model.dtype).removeprefix("torch.")
        return (
            f"calibration text: {self.text.name}, {self.text.tokens:,} tokens in "
            f"{count(len(self.text.documents), 'document')}, read {passes} by the finetune in {dtype}; "
            f"{count(len(self.pairs), 'matrix', 'matrices')} take part; about {size(self.peak_memory)} of memory on "
            f"{self.model.device}, {duration(self.seconds)}"
        )

    def to_plain(self) -> dict[str, Any]:
        return {
            "text": self.text.name,
            "documents": len(self.text.documents),
            "tokens": self.text.tokens,
            "passes": len(self.passes),
            "matrices": len(self.pairs),
            "peak_memory": self.peak_memory,
            "seconds": self.seconds,
        }

    def check_memory(self) -> None:
        """Raises JobError (slug "not-enough-memory") if the model does not fit with the inputs of one matrix."""
        if self.available is not None and self.peak_memory > _USABLE_SHARE * self.available:
            raise JobError(
                f"--calibration-text runs the finetune, which needs about {size(self.peak_memory)} of memory on "
                f"{self.model.device}; {size(self.available)} is available.",
                cure="Leave out --calibration-text: the losses of the weights are measured matrix by matrix. Or use "
                "a machine with more memory.",
                slug="not-enough-memory",
            )

    def _gram_entries(self, pair: Pair) -> int:
        return self.model.places.input_entries(self._slots[pair.name], pair.shape)

    def _gram_bytes(self, pair: Pair) -> float:
        return float(_NUMBER_BYTES * self._gram_entries(pair))

    def _bytes_of(self, pairs: Sequence[Pair]) -> float:
        return math.fsum(map(self._gram_bytes, pairs))

    @cached_property
    def _slots(self) -> dict[str, Any]:
        return dict(self.model.places.find(self.pairs))

    @cached_property
    def _other_bytes(self) -> float:
        """The model, a document that runs through it, and the matrix that is measured."""
        longest = max((len(each) for each in self.text.ids), default=0)
        skeleton = self.model.skeleton
        activations = longest * _NUMBER_BYTES * (_VECTORS_PER_TOKEN * skeleton.hidden_size + 2 * skeleton.vocabulary)
        costs = (factorisation_cost(*pair.shape, max(self.ranks), self.model.device).memory for pair in self.pairs)
        products = _COPIES_OF_A_MATRIX * _NUMBER_BYTES * max((pair.entries for pair in self.pairs), default=0)
        fixed = FIXED_MEMORY if self.model.device.type == "cpu" else 0.0
        return fixed + self.model.weight_bytes + activations + max(costs, default=0.0) + products


@dataclass(frozen=True, repr=False)
class CalibratedPlan(Plan):
    """The plan of a comparison, and of the passes over the text that follow."""

    activations: ActivationPlan

    @property
    def seconds(self) -> float:
        return super().seconds + self.activations.seconds

    @property
    def peak_memory(self) -> float:
        return max(super().peak_memory, self.activations.peak_memory)

    def lines(self) -> list[str]:
        *lines, needs = super().lines()
        return [*lines, self.activations.line, needs]

    def to_plain(self) -> dict[str, Any]:
        return {**super().to_plain(), "calibration": self.activations.to_plain()}


def with_calibration(plan: Plan, checkpoints: tuple[Checkpoint, Checkpoint], options: CompareOptions) -> CalibratedPlan:
    """Reads the configuration, the tokenizer and the text.

    Raises:
        JobError: slug "calibration-no-model": transformers cannot run the finetune; slug "not-enough-memory": it does
            not fit into memory.
        UsageError: a text does not exist, or is too short.
    """
    model = _open(*checkpoints, options)
    text = read_documents(
        [Path(each) for each in options.calibration_texts],
        model.tokenizer,
        tokens=options.calibration_tokens,
        context=model.skeleton.context,
        vocabulary=model.skeleton.vocabulary,
    )
    placed = model.places.find(plan.pairing.pairs)
    pairs = tuple(pair for pair in plan.pairing.pairs if pair.name in placed)
    activations = ActivationPlan(text, model, pairs, options.ranks, available_memory(options.torch_device))
    activations.check_memory()
    return CalibratedPlan(**{each.name: getattr(plan, each.name) for each in fields(Plan)}, activations=activations)


def _open(base: Checkpoint, finetune: Checkpoint, options: CompareOptions) -> RunnableModel:
    try:
        return RunnableModel.open(finetune, base, options.torch_device)
    except DeltarankError as error:
        raise JobError(
            f"--calibration-text needs transformers to run the finetune, which it cannot: {error.message}",
            cure="Leave out --calibration-text: the losses of the weights need no model.",
            slug="calibration-no-model",
        ) from error
