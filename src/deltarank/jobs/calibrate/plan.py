"""What a calibration will do, and the memory, disk and time that it needs, known before a weight is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deltarank.checkpoints import Checkpoint
from deltarank.errors import JobError
from deltarank.jobs.calibrate.documents import CHOOSING_SHARE, SCORING_SHARE
from deltarank.jobs.calibrate.evaluate import MODELS
from deltarank.jobs.calibrate.options import OWN, CalibrateOptions
from deltarank.jobs.calibrate.own_answers import answers_at_once
from deltarank.jobs.calibrate.placement import STATES_OF_A_PARAMETER, Footprint, can_stream
from deltarank.jobs.calibrate.schedule import LOOKS, TOKENS_PER_STEP
from deltarank.jobs.calibrate.texts import text_bytes
from deltarank.jobs.extract import ExtractionPlan
from deltarank.models import ModelSkeleton
from deltarank.results import ShownAsLines, WeightPlacement, count, duration, listing, percent, size
from deltarank.runtime import READ_RATE, operations_per_second
from deltarank.system import Default, user_path

USABLE_SHARE = 0.85
"""Of the available memory."""

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
    footprint         the memory of the base with an adapter that is trained
    available_memory  bytes on the device; None if unknown
    tokens            of the texts, at most
    notes             on the finetune's own answers in a short context
    """

    options: CalibrateOptions
    extraction: ExtractionPlan
    footprint: Footprint
    available_memory: int | None
    tokens: int
    notes: Sequence[str]

    @classmethod
    def of_models(
        cls,
        options: CalibrateOptions,
        extraction: ExtractionPlan,
        models: Sequence[tuple[ModelSkeleton, Checkpoint]],
        available_memory: int | None,
        notes: Sequence[str] = (),
    ) -> CalibrationPlan:
        """models: the base and the finetune.

        Raises:
            UsageError: (slug "text-not-found") there is no such text.
        """
        skeleton, checkpoint = models[0]
        footprint = Footprint(
            skeleton,
            trained=sum(sum(target.linear_shape) * target.rank for target in extraction.layout.targets),
            stored_bytes=sum(info.nbytes for info in checkpoint.tensors.values()),
            can_stream=not extraction.carried and can_stream(models),
        )
        return cls(options, extraction, footprint, available_memory, _most_tokens(options), notes)

    @property
    def trained(self) -> int:
        """Numbers in A and B."""
        return self.footprint.trained

    @property
    def skeleton(self) -> ModelSkeleton:
        """Of the base."""
        return self.footprint.skeleton

    @property
    def _usable_memory(self) -> float | None:
        return None if self.available_memory is None else USABLE_SHARE * self.available_memory

    @cached_property
    def placement(self) -> WeightPlacement:
        """Where the weights are while a model runs: the fastest that fits."""
        return self.footprint.choose(self._usable_memory)

    @cached_property
    def memory(self) -> int:
        """Bytes: the base, the finetune's output head, what the optimiser holds, and the activations of a batch."""
        return self.footprint.memory(self.placement)

    @property
    def disk_bytes(self) -> float:
        """While it runs: two adapters, the state of the training, and the finetune's predictions.

        Of a prediction the input of the output head is stored; all logits where a softcap or a scale follows the head.
        """
        width = self.skeleton.vocabulary if self.skeleton.changes_logits else self.skeleton.hidden_size
        predictions = 4 * (self.tokens * width + self.footprint.head_numbers)
        return 4 * self.extraction.adapter_bytes + 4 * STATES_OF_A_PARAMETER * self.trained + 2 * predictions

    @property
    def seconds(self) -> float:
        steps = self.options.steps * self.step_seconds
        looks = (len(LOOKS) + 2) * self._reading_seconds(CHOOSING_SHARE * self.tokens)
        teacher = self._reading_seconds((1 - SCORING_SHARE) * self.tokens)
        return self.extraction.seconds + self._answering_seconds + looks + teacher + steps + self.scoring_seconds

    @property
    def scoring_seconds(self) -> float:
        """Larger ranks of plain extraction, which are seldom scored, are not planned."""
        tokens = SCORING_SHARE * self.tokens + _OTHER_TOKENS
        return MODELS * self._reading_seconds(tokens)

    @property
    def step_seconds(self) -> float:
        """One step of gradient descent. To save memory, every layer runs a second time."""
        forward = _FORWARD if self.placement is WeightPlacement.WHOLE else 2 * _FORWARD
        computing = TOKENS_PER_STEP * (forward + _BACKWARD) * self._seconds_per_operation
        return computing + 2 * self._pass_seconds

    def _reading_seconds(self, tokens: float) -> float:
        """A model reads so many tokens."""
        passes = math.ceil(tokens / self.placement.tokens_at_once)
        return tokens * _FORWARD * self._seconds_per_operation + passes * self._pass_seconds

    @property
    def _answering_seconds(self) -> float:
        """The finetune writes its own answers, for each token of which the model is passed through once."""
        if OWN not in self.options.calibrate:
            return 0.0
        answers = math.ceil(self.tokens / Default.MAX_TOKENS)
        passes = Default.MAX_TOKENS * math.ceil(answers / answers_at_once(self.skeleton))
        computing = self.tokens * _FORWARD * self._seconds_per_operation
        return computing + passes * self._pass_seconds

    @property
    def _pass_seconds(self) -> float:
        """To make all weights anew for one pass. Upcasting them takes longer than reading files that are cached."""
        return self.footprint.stored_bytes / READ_RATE if self.placement.converts else 0.0

    @property
    def _seconds_per_operation(self) -> float:
        """That each parameter takes part in."""
        return self.skeleton.parameters / operations_per_second(self.options.solver_options.torch_device.type)

    def check_memory(self) -> None:
        """Raises JobError (slug "calibration-memory") if the base with its gradients does not fit."""
        available, usable = self.available_memory, self._usable_memory
        if available is not None and usable is not None and self.memory > usable:
            raise JobError(
                f"The base with the gradients of A and B needs about {size(self.memory)} of memory{self._at_least}; "
                f"{size(available)} is available.",
                cure="Use a machine or a --device with more memory, a lower --rank, or leave out --calibrate: plain "
                "extraction reads one matrix at a time.",
                slug="calibration-memory",
            )

    @property
    def _at_least(self) -> str:
        if self.footprint.can_stream:
            return ", with one layer of the weights at a time"
        return " (its layers cannot be read one at a time)"

    @property
    def _needed_memory(self) -> str:
        available = "" if self.available_memory is None else f" ({size(self.available_memory)} is available)"
        return f"{size(self.memory)} of memory{available}"

    @property
    def _at_most(self) -> str:
        return "" if self.tokens == self.options.calibration_tokens else "at most "

    def lines(self) -> list[str]:
        options = self.options
        texts = ["the finetune's own answers" if text == OWN else text for text in options.calibrate]
        return [
            *self.extraction.lines()[:-2],
            "",
            f"calibration on {listing(texts)}: {self._at_most}about {self.tokens:,} tokens",
            *self.notes,
            _SHARES,
            f"at most {count(options.steps, 'step')}, each of about {TOKENS_PER_STEP:,} tokens",
            f"{self.trained:,} numbers in A and B",
            self.placement.plan,
            f"Needs about {self._needed_memory}, {size(self.disk_bytes)} of disk and about {duration(self.seconds)}.",
        ]

    def to_plain(self) -> dict[str, Any]:
        return {
            **self.extraction.to_plain(),
            "settings": self.options.to_plain(),
            "trained": self.trained,
            "placement": self.placement.value,
            "peak_memory": self.memory,
            "disk_bytes": self.disk_bytes,
            "seconds": self.seconds,
        }


def _most_tokens(options: CalibrateOptions) -> int:
    """Those that are asked for; of files no more than they have bytes, since a token is at least one.

    Raises:
        UsageError: (slug "text-not-found") there is no such text.
    """
    paths = [user_path(text) for text in options.calibrate if text != OWN]
    size = text_bytes(paths)
    return options.calibration_tokens if OWN in options.calibrate else min(options.calibration_tokens, size)
