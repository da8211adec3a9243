"""What an unfinished job stores: answers are generated once, and only files of the job are removed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deltarank.divergence import Answer, Prompt
from deltarank.jobs.outputs.answers import AnswerRecord, Answers
from deltarank.jobs.outputs.partial_folder import PartialFolder

ANY: Any = None


class AnyModel:
    model = None


def test_only_prompts_without_an_answer_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[list[int]] = []
    records: list[Any] = []
    finished: list[int] = []

    def generate(
        _model: object, _tokenizer: object, asked: Sequence[Prompt], *, first: int, samples: int, **_: object
    ) -> list[Answer]:
        blocks.append([first + i for i in range(len(asked))])
        return [Answer(i, s, (7,), f"{i} {s}", (1, 2)) for i in blocks[-1] for s in range(samples)]

    monkeypatch.setattr("deltarank.jobs.outputs.answers.generate_answers", generate)
    prompts = [Prompt(f"prompt {i}") for i in range(6)]
    answers = Answers(prompts, ANY, samples=2, max_tokens=4, context=99, batch=4, save_record=records.append)
    answers.add(AnswerRecord("base", 2, ((0, (5,), "kept", (1,)), (1, (5,), "kept", (1,)))))
    model: Any = AnyModel()
    answers.generate("base", model, 0, finished.append)

    assert blocks == [[0, 1], [3, 4], [5]]
    assert finished == [1, 2, 2, 1]
    assert [answer.prompt_index for answer in answers.of_model("base")] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert records[0] == {"answers": "base", "prompt": 0, "written": [[0, [7], "0 0", [1, 2]], [1, [7], "0 1", [1, 2]]]}


def test_other_people_s_files_are_not_removed(tmp_path: Path) -> None:
    folder = PartialFolder(tmp_path / "outputs.partial")
    for file in (folder.factors(3), folder.reference / "head.pt", folder.scores(1, 2), folder.path / "run.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    assert folder.has_scores

    (folder.path / "notes.txt").write_text("mine")
    folder.remove()
    assert [path.name for path in folder.path.iterdir()] == ["notes.txt"]
    (folder.path / "notes.txt").unlink()
    folder.remove()
    assert not folder.path.exists()
