"""The models' answers to the prompts, stored prompt by prompt while a job runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deltarank.divergence import Answer, Prompt, Tokenizer
from deltarank.jobs.outputs.callbacks import OnFinished
from deltarank.jobs.outputs.loaded_model import LoadedModel
from deltarank.models import generate_answers
from deltarank.results import FINETUNE, Count, Outputs, to_plain


def candidate_seed(seed: int) -> int:
    """The seed of the candidates' answers, and of the finetune's second ones. `seed` is that of its first answers.

    The first answers are the reference, so no other may share their random numbers. The others all share theirs: then
    equal models write the same, and similar ones begin alike.
    """
    return seed + 1


def prompts_per_block(samples: int, batch: int) -> int:
    """Prompts that are answered together: those of which all answers fit into a batch, and at least one."""
    return max(batch // max(samples, 1), 1)


@dataclass(frozen=True)
class AnswerRecord:
    """A line of the run's folder: the answers of one model to one prompt.

    answers          the name of the model
    prompt           index of the prompt
    written          (index of the sample, token ids, text, token ids of the prompt) of each answer
    """

    answers: str
    prompt: Count
    written: tuple[tuple[Count, tuple[Count, ...], str, tuple[Count, ...]], ...]


def finetune_records(outputs: Outputs) -> tuple[AnswerRecord, ...]:
    """The finetune's answers in finished outputs."""
    by_prompt: dict[int, list[Any]] = {}
    for each in outputs.own_answers:
        by_prompt.setdefault(each.prompt, []).append((each.sample, each.ids, each.text, each.prompt_ids))
    return tuple(AnswerRecord(FINETUNE, prompt, tuple(written)) for prompt, written in by_prompt.items())


def with_ids(prompts: Sequence[Prompt], records: Sequence[AnswerRecord]) -> list[Prompt]:
    """The prompts with the tokens that were answered in these records: a chat template may write the date of today."""
    tokens = {record.prompt: prompt_ids for record in records for _, _, _, prompt_ids in record.written[:1]}
    return [replace(prompt, tokens=tokens.get(number)) for number, prompt in enumerate(prompts)]


@dataclass
class Answers:
    """All answers of a job, by the name of the model.

    context          the longest text that every model takes
    batch            answers that are generated together
    save_record      called with a record of the answers to each prompt
    """

    prompts: Sequence[Prompt]
    tokenizer: Tokenizer
    samples: int
    max_tokens: int
    context: int
    batch: int
    save_record: Callable[[Mapping[str, Any]], None]
    _by_model: dict[str, dict[int, list[Answer]]] = field(default_factory=dict)

    def add(self, record: AnswerRecord) -> None:
        answers = [Answer(record.prompt, *each) for each in record.written]
        self._by_model.setdefault(record.answers, {})[record.prompt] = answers

    def of_model(self, name: str) -> list[Answer]:
        """Its answers, prompt by prompt."""
        return [answer for _, answers in sorted(self._by_model.get(name, {}).items()) for answer in answers]

    def generate(self, name: str, model: LoadedModel, seed: int, on_finished: OnFinished) -> None:
        """Answers the prompts that the model has not answered yet.

        Args:
            name: the name that its answers are stored under.
            on_finished: called with numbers of prompts.
        """
        missing = [i for i in range(len(self.prompts)) if i not in self._by_model.get(name, {})]
        if len(missing) < len(self.prompts):
            on_finished(len(self.prompts) - len(missing), resumed=True)
        while missing:
            block = _consecutive(missing, prompts_per_block(self.samples, self.batch))
            missing = missing[len(block) :]
            self._generate_block(name, block, model, seed)
            on_finished(len(block), resumed=False)

    def _generate_block(self, name: str, block: Sequence[int], model: LoadedModel, seed: int) -> None:
        answers = generate_answers(
            model.model,
            self.tokenizer,
            [self.prompts[i] for i in block],
            samples=self.samples,
            seed=seed,
            max_tokens=self.max_tokens,
            batch=self.batch,
            context=self.context,
            first=block[0],
        )
        for number in block:
            written = ((a.sample_index, a.ids, a.text, a.prompt_ids) for a in answers if a.prompt_index == number)
            record = AnswerRecord(name, number, tuple(written))
            self.save_record(to_plain(record))
            self.add(record)


def _consecutive(numbers: Sequence[int], most: int) -> list[int]:
    """The first of the numbers, up to a gap."""
    block = [numbers[0]]
    for number in numbers[1:most]:
        if number != block[-1] + 1:
            break
        block.append(number)
    return block
