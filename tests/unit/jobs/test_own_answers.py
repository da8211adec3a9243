"""The finetune's own answers, also where its context is short."""

from pathlib import Path

import pytest
import torch

from deltarank.demo.model import tokenizer
from deltarank.demo.recipe import Recipe
from deltarank.jobs.calibrate.documents import encode, split_records
from deltarank.jobs.calibrate.own_answers import OwnAnswers
from deltarank.system import Default
from refusals import refused
from tiny_architectures import architecture

TOKENIZER = tokenizer(Recipe())  # a token is a byte: most built-in prompts have more than 100
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = {"vocab_size": 259, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}


def own_answers(context: int, tokens: int = 1500) -> OwnAnswers:
    return OwnAnswers(TOKENIZER, tokens, context, seed=0, at_once=64)


def test_in_a_short_context_they_are_shorter_and_can_be_split(tmp_path: Path) -> None:
    answers = own_answers(192)
    torch.manual_seed(0)
    model = architecture("llama", **SIZES, **TOKENS, max_position_embeddings=192)().eval()
    counts: list[int] = []
    answers.check()
    answers.write(tmp_path / "answers", lambda: model, counts.append)
    records = answers.read(tmp_path / "answers")
    split = split_records(records, TOKENIZER, tokens=1500, context=192, seed=0)
    assert 8 <= answers.prompts < 24
    assert counts[-1] == answers.prompts
    assert len({record["group"] for part in (split.fit, split.choose, split.score) for record in part}) >= 8
    assert all(encode(record, TOKENIZER, context=192) for record in records)


def test_what_a_short_context_changes_is_said() -> None:
    assert own_answers(2048).notes == []
    left_out, shorter = own_answers(192).notes
    assert left_out.startswith(f"{own_answers(192).prompts} of the 24 built-in prompts fit")
    assert f"shorter than {Default.MAX_TOKENS} tokens" in shorter


@pytest.mark.parametrize("context", [40, 145])
def test_where_too_few_prompts_fit_a_text_is_the_cure(context: int) -> None:
    with refused("prompt-length", match=f"context of {context}; a calibration needs 8") as caught:
        own_answers(context).check()
    assert "--calibrate FILE" in caught.value.cure


def test_few_tokens_are_still_enough_documents_for_a_split() -> None:
    """Eight are taken, also if the first ones have all the tokens that were asked for."""
    records = [{"text": f"document {number} " + "is long " * 80} for number in range(20)]
    split = split_records(records, TOKENIZER, tokens=1000, context=512, seed=0)
    assert len(split.fit) + len(split.choose) + len(split.score) == 8
