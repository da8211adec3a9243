"""What models write to the prompts, kept answer by answer while a job goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltarank.divergence import Answer, Prompt
from deltarank.jobs.outputs.loaded_model import LoadedModel
from deltarank.models import generate_answers
from deltarank.results import Count, to_plain

AT_ONCE = 8
"""Answers that are written side by side, if nothing else was asked for."""


@dataclass(frozen=True)
class AnswerRecord:
    """A line of the run's folder: what one model wrote to one prompt.

    answers          who wrote them
    prompt           its number
    written          (sample, ids, text, ids of the prompt) of each answer
    """

    answers: str
    prompt: Count
    written: tuple[tuple[Count, tuple[Count, ...], str, tuple[Count, ...]], ...]


@dataclass
class Answers:
    """All answers of a job, by who wrote them.

    keep             takes a record when a prompt was answered
    """

    prompts: Sequence[Prompt]
    tokenizer: Any
    samples: int
    max_tokens: int
    context: int
    batch: int | None
    keep: Callable[[Mapping[str, Any]], None]
    _written: dict[str, dict[int, list[Answer]]] = field(default_factory=dict)

    def resume(self, record: AnswerRecord) -> None:
        """What an earlier process wrote."""
        written = [Answer(record.prompt, *each) for each in record.written]
        self._written.setdefault(record.answers, {})[record.prompt] = written

    def of(self, who: str) -> list[Answer]:
        """Prompt after prompt."""
        return [answer for _, answers in sorted(self._written.get(who, {}).items()) for answer in answers]

    def missing(self, who: str) -> list[int]:
        return [i for i in range(len(self.prompts)) if i not in self._written.get(who, {})]

    def write(self, who: str, model: LoadedModel, seed: int, done: Callable[[int], None]) -> None:
        """Answers the prompts that are not answered yet; `done` hears how many were."""
        left = self.missing(who)
        done(len(self.prompts) - len(left))
        step = max((self.batch or AT_ONCE) // self.samples, 1)
        while left:
            block = _run(left, step)
            left = left[len(block) :]
            self._answer(who, block, model, seed)
            done(len(block))

    def _answer(self, who: str, block: Sequence[int], model: LoadedModel, seed: int) -> None:
        answers = generate_answers(
            model.model,
            self.tokenizer,
            [self.prompts[i] for i in block],
            samples=self.samples,
            seed=seed,
            max_tokens=self.max_tokens,
            batch=self.batch or AT_ONCE,
            context=self.context,
            first=block[0],
        )
        for number in block:
            written = ((a.sample_index, a.ids, a.text, a.prompt_ids) for a in answers if a.prompt_index == number)
            record = AnswerRecord(who, number, tuple(written))
            self.keep(to_plain(record))
            self.resume(record)


def _run(numbers: Sequence[int], most: int) -> list[int]:
    """The first of them that follow each other without a gap."""
    block = [numbers[0]]
    for number in numbers[1:most]:
        if number != block[-1] + 1:
            break
        block.append(number)
    return block
