"""What is said of the texts of a calibration."""

from types import SimpleNamespace

import pytest

from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.jobs.calibrate import CalibrateOptions
from deltarank.jobs.calibrate.calibration_texts import CalibrationTexts


@pytest.mark.parametrize(
    ("context", "sentence"),
    [
        (300, "The finetune reads 2 documents, in 5 parts of at most 300 tokens."),
        (2048, "The finetune reads 2 documents, in 3 parts of at most 512 tokens."),
    ],
)
def test_documents_are_told_from_the_parts_that_are_read(context: int, sentence: str) -> None:
    model = SimpleNamespace(context=context)
    texts = CalibrationTexts(CalibrateOptions(rank=2), model, model, tokenizer(Recipe()))  # type: ignore[arg-type]
    records = [{"text": "short"}, {"text": "a" * 1000}]
    assert texts.read_by_finetune(len(records), len(texts.encode(records))) == sentence
    assert texts.read_by_finetune(1, 1) == "The finetune reads 1 document."
