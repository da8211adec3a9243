"""The finetune's own answers to the built-in prompts, as texts of a calibration."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deltarank.divergence import Prompt, Tokenizer, read_json_lines, read_prompts
from deltarank.errors import UsageError
from deltarank.jobs.calibrate.documents import write_records
from deltarank.jobs.calibrate.options import FEWEST_DOCUMENTS, FEWEST_TOKENS
from deltarank.jobs.calibrate.texts import Record
from deltarank.models import AnyModel, ModelSkeleton, generate_answers
from deltarank.system import Default

SHORTEST_ANSWER = 32
"""Tokens. A prompt that leaves no room for them is left out."""

END_TOKENS = 8
"""Room for the end of a turn, which a chat template adds to an answer."""

FEWEST_ANSWERS, MOST_ANSWERS = 32, 64
"""Written together: each token reads all weights once for all of them."""

_CACHE_BYTES = 1 << 30
"""Of keys and values. Beyond it, no more than FEWEST_ANSWERS are written together."""


def answers_at_once(skeleton: ModelSkeleton) -> int:
    """How many answers, with prompts of their length, are written together."""
    of_an_answer = 4 * skeleton.cache_entries * 2 * Default.MAX_TOKENS
    return min(max(_CACHE_BYTES // max(of_an_answer, 1), FEWEST_ANSWERS), MOST_ANSWERS)


@dataclass(frozen=True)
class OwnAnswers:
    """The finetune's answers to the built-in prompts, sampled at temperature 1: about `tokens` tokens.

    Prompts are answered some at a time, and what was answered is stored at once, in a file of its own. Answers to one
    prompt have one "group": the split keeps them together. In a short context the answers are shorter, and prompts
    that leave no room for SHORTEST_ANSWER tokens are left out.

    at_once     answers that are written together
    """

    tokenizer: Tokenizer
    tokens: int
    context: int
    seed: int
    at_once: int

    def write(self, folder: Path, load: Callable[[], AnyModel], on_answered: Callable[[int], None]) -> None:
        """Answers those prompts that are not answered yet. Equal options give equal files, also after interruptions.

        Args:
            load: gives the finetune; called if there is anything left to answer.
            on_answered: called with how many prompts are answered.
        """
        folder.mkdir(exist_ok=True)
        unanswered = [start for start in self._starts if not _file(folder, start).is_file()]
        model = load() if unanswered else None
        for start in unanswered:
            write_records(_file(folder, start), self._answers(model, start))
            on_answered(min(start + self._prompts_at_once, self.prompts))

    def read(self, folder: Path) -> list[Record]:
        return [record for start in self._starts for _, record in read_json_lines(_file(folder, start))]

    def check(self) -> None:
        """Raises UsageError (slug "prompt-length") if so few prompts fit that their answers cannot be split."""
        if self.prompts < FEWEST_DOCUMENTS:
            raise UsageError(
                f"{self._fitting} into the context of {self.context:,}; a calibration needs {FEWEST_DOCUMENTS}.",
                cure="Calibrate on a text in place of own: --calibrate FILE, a .txt, .md or .jsonl file.",
                slug="prompt-length",
            )

    @property
    def prompts(self) -> int:
        """How many of the built-in prompts fit."""
        return len(self._prompts)

    @property
    def notes(self) -> list[str]:
        """What a short context changes."""
        notes = []
        if self.prompts < len(read_prompts(None)):
            notes.append(f"{self._fitting} into the context of {self.context:,}; the others are left out.")
        if self._prompts and self._prompts[-1][0] < Default.MAX_TOKENS:
            notes.append(
                f"Some answers are shorter than {Default.MAX_TOKENS} tokens, so that they fit into the context of "
                f"{self.context:,}."
            )
        return notes

    @property
    def _fitting(self) -> str:
        of_all = f"of the {len(read_prompts(None))} built-in prompts"
        return f"{self.prompts or 'None'} {of_all} fit, with an answer of at least {SHORTEST_ANSWER} tokens,"

    def _answers(self, model: AnyModel, start: int) -> list[Record]:
        lengths, prompts = zip(*self._prompts[start : start + self._prompts_at_once], strict=True)
        answers = generate_answers(
            model,
            self.tokenizer,
            prompts,
            samples=self._samples,
            seed=self.seed,
            max_tokens=min(lengths),
            batch=self.at_once,
            context=self.context,
            first=start,
        )
        return [
            {
                "messages": _conversation(self._prompts[answer.prompt_index][1], answer.text),
                "group": f"prompt {answer.prompt_index}",
            }
            for answer in answers
            if answer.text.strip()
        ]

    @cached_property
    def _prompts(self) -> list[tuple[int, Prompt]]:
        """Those that fit, with the tokens of their answers. Answers of about the same length are written together."""
        room = self.context - END_TOKENS
        prompts = read_prompts(None)
        lengths = [min(Default.MAX_TOKENS, room - len(prompt.ids(self.tokenizer))) for prompt in prompts]
        fitting = [each for each in zip(lengths, prompts, strict=True) if each[0] >= SHORTEST_ANSWER]
        return sorted(fitting, key=lambda each: -each[0])

    @property
    def _samples(self) -> int:
        """For each prompt. A shorter answer fills the context with its prompt, which is most of the tokens.

        Some answers end early. Twice the FEWEST_TOKENS are enough nevertheless.
        """
        answers = [length for length, _ in self._prompts]
        filled = [length if length == Default.MAX_TOKENS else self.context for length in answers]
        return max(math.ceil(self.tokens / sum(filled)), math.ceil(2 * FEWEST_TOKENS / sum(answers)))

    @property
    def _prompts_at_once(self) -> int:
        return max(1, self.at_once // self._samples)

    @property
    def _starts(self) -> range:
        return range(0, len(self._prompts), self._prompts_at_once)


def _file(folder: Path, start: int) -> Path:
    return folder / f"{start:04}.jsonl"


def _conversation(prompt: Prompt, answer: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": prompt.text}, {"role": "assistant", "content": answer}]
