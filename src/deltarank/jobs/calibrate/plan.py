"""What a calibration will do, and the memory, disk and time that it needs, known before a weight is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deltarank.errors import JobError
from deltarank.jobs.calibrate.distill import LOOKS, TOKENS_AT_ONCE, TOKENS_PER_STEP
from deltarank.jobs.calibrate.documents import CHOOSING_SHARE, SCORING_SHARE
from deltarank.jobs.calibrate.evaluate import MODELS
from deltarank.jobs.calibrate.options import OWN, CalibrateOptions
from deltarank.jobs.extract import ExtractionPlan
from deltarank.models import ModelSkeleton
from deltarank.results import ShownAsLines, duration, listing, percent, size
from deltarank.runtime import operations_per_second

USABLE_SHARE = 0.85
"""Of the available memory."""

_STATES_OF_A_PARAMETER = 7
"""In float32: A or B, its gradient, two moments of Adam, the best step, and copies on the way to disk."""

_ACTIVATIONS_PER_LAYER = 40
"""Vectors of the hidden size for each token, kept for the gradient; a rough bound."""

_CHUNKS_OF_LOGITS = 1 << 30
"""Bytes for the logits of both models and what is computed from them; a rough bound."""

_SHARES = (
    f"{percent(1 - CHOOSING_SHARE - SCORING_SHARE)} of the documents fit, {percent(CHOOSING_SHARE)} choose the step, "
    f"and {percent(SCORING_SHARE)} are only scored"
)

_OTHER_TOKENS = 2_000
"""Of the built-in passages, about."""

_FORWARD, _BACKWARD = 2, 4
"""Operations per parameter and token: gradients with respect to inputs, and those of A and B, which are few."""


@dataclass(frozen=True, repr=False)
class CalibrationPlan(ShownAsLines):
    """The plan of a calibration. Seconds and bytes are estimates. `lines()` is for people, `to_plain()` for programs.

    extraction        the plan of the plain adapter
    skeleton          of the base
    available_memory  bytes on the device; None if unknown
    """

    options: CalibrateOptions
    extraction: ExtractionPlan
    skeleton: ModelSkeleton
    available_memory: int | None

    @cached_property
    def trained(self) -> int:
        """Numbers in A and B."""
        return sum(sum(target.linear_shape) * target.rank for target in self.extraction.layout.targets)

    @property
    def layers(self) -> int:
        return int(getattr(self.skeleton.config.get_text_config(), "num_hidden_layers", 0) or 1)

    @property
    def memory(self) -> int:
        """Bytes: the base, the finetune's output head, what Adam holds, and the activations of a batch."""
        activations = TOKENS_AT_ONCE * self.layers * self.skeleton.hidden_size * _ACTIVATIONS_PER_LAYER
        models = self.skeleton.parameters + self._head_numbers
        return 4 * (models + _STATES_OF_A_PARAMETER * self.trained + activations) + _CHUNKS_OF_LOGITS

    @property
    def disk_bytes(self) -> float:
        """While it runs: two adapters, the state of the training, and the finetune's predictions.

        Of a prediction the input of the output head is stored, or all logits where a softcap follows the head.
        """
        width = self.skeleton.vocabulary if self.skeleton.softcaps_logits else self.skeleton.hidden_size
        predictions = 4 * (self.options.calibration_tokens * width + self._head_numbers)
        return 4 * self.extraction.adapter_bytes + 4 * _STATES_OF_A_PARAMETER * self.trained + 2 * predictions

    @property
    def _head_numbers(self) -> int:
        return self.skeleton.vocabulary * self.skeleton.hidden_size

    @property
    def seconds(self) -> float:
        options = self.options
        steps = options.steps * self.step_seconds
        looks = (LOOKS + 2) * CHOOSING_SHARE * options.calibration_tokens * _FORWARD
        teacher = options.calibration_tokens * _FORWARD * (2 if OWN in options.calibrate else 1)
        reading = (looks + teacher) * self._seconds_per_operation
        return self.extraction.seconds + reading + steps + self.scoring_seconds

    @property
    def scoring_seconds(self) -> float:
        """Larger ranks of plain extraction, which are seldom scored, are not planned."""
        tokens = SCORING_SHARE * self.options.calibration_tokens + _OTHER_TOKENS
        return MODELS * tokens * _FORWARD * self._seconds_per_operation

    @property
    def step_seconds(self) -> float:
        """One step of gradient descent."""
        return TOKENS_PER_STEP * (_FORWARD + _BACKWARD) * self._seconds_per_operation

    @property
    def _seconds_per_operation(self) -> float:
        """That each parameter takes part in."""
        return self.skeleton.parameters / operations_per_second(self.options.solver_options.torch_device.type)

    def check_memory(self) -> None:
        """Raises JobError (slug "calibration-memory") if the base with its gradients does not fit."""
        available = self.available_memory
        if available is not None and self.memory > USABLE_SHARE * available:
            raise JobError(
                f"The base with the gradients of A and B needs about {size(self.memory)} of memory; "
                f"{size(available)} is available.",
                cure="Use a machine or a --device with more memory, a lower --rank, or leave out --calibrate: plain "
                "extraction reads one matrix at a time.",
                slug="calibration-memory",
            )

    def lines(self) -> list[str]:
        options = self.options
        texts = ["the finetune's own answers" if text == OWN else text for text in options.calibrate]
        return [
            *self.extraction.lines()[:-2],
            "",
            f"calibration on {listing(texts)}: about {options.calibration_tokens:,} tokens",
            _SHARES,
            f"at most {options.steps:,} steps of about {TOKENS_PER_STEP:,} tokens; {self.trained:,} numbers in A and B",
            f"Needs about {size(self.memory)} of memory, {size(self.disk_bytes)} of disk and {duration(self.seconds)}.",
        ]

    def to_plain(self) -> dict[str, Any]:
        return {
            **self.extraction.to_plain(),
            "settings": self.options.to_plain(),
            "trained": self.trained,
            "peak_memory": self.memory,
            "disk_bytes": self.disk_bytes,
            "seconds": self.seconds,
        }
