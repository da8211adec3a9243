"""Answers of a job: the same whatever is answered together, and after an interruption at any point."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deltarank.divergence import Answer, Prompt
from deltarank.jobs.outputs.answers import AnswerRecord, Answers
from deltarank.results import read_records
from some_tokenizers import with_spaces_in_front
from unit.jobs.tiny_candidates import Finished, opened_model

TOKENIZER = with_spaces_in_front()
PROMPTS = [Prompt("the cat"), Prompt("a mat for the dog sat"), Prompt("the"), Prompt("on the mat and the cat")]


def generated(
    folder: Path, finished: Sequence[dict[str, Any]] = (), *, batch: int = 8
) -> tuple[list[Answer], list[dict[str, Any]], Finished]:
    """All answers; the records that were saved; the numbers of prompts that were reported."""
    records: list[Any] = []
    reported = Finished()
    answers = Answers(PROMPTS, TOKENIZER, 2, 6, 32, batch, records.append)
    for record in read_records(AnswerRecord, finished, "answers"):
        answers.add(record)
    with opened_model(folder) as model:
        answers.generate("finetune", model, 5, reported)
    return answers.of_model("finetune"), json.loads(json.dumps(records)), reported


def test_they_do_not_depend_on_what_is_generated_together(llama: tuple[Path, Path]) -> None:
    whole, records, reported = generated(llama[1])

    assert [(each.prompt_index, each.sample_index) for each in whole] == [(p, s) for p in range(4) for s in range(2)]
    assert [record["prompt"] for record in records] == [0, 1, 2, 3]
    assert reported.total(resumed=False) == 4
    for batch in (1, 2, 5, 16):
        assert generated(llama[1], batch=batch)[0] == whole


@pytest.mark.parametrize("finished", [[0], [1, 2], [0, 2], [3], [0, 1, 2, 3]])
def test_a_resumed_job_generates_the_missing_ones_and_ends_with_the_same(
    llama: tuple[Path, Path], finished: list[int]
) -> None:
    whole, records, _ = generated(llama[1])
    resumed, added, reported = generated(llama[1], [records[i] for i in finished], batch=4)

    assert resumed == whole
    assert [record["prompt"] for record in added] == [i for i in range(4) if i not in finished]
    assert (reported.total(resumed=True), reported.total()) == (len(finished), 4)


def test_answers_of_other_models_are_not_reused(llama: tuple[Path, Path]) -> None:
    _, records, _ = generated(llama[1])
    others = [{**record, "answers": "base"} for record in records]

    assert generated(llama[1], others)[1] == records
