"""Answers are sampled from the model's own distribution, each with random numbers of its own."""

from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from scipy import stats

import tiny_architectures
from deltarank.divergence import Answer, Prompt
from deltarank.errors import UsageError
from deltarank.models import generate_answers
from refusals import refused
from some_tokenizers import with_spaces_in_front

TOKENIZER = with_spaces_in_front()
PROMPTS = [Prompt("the cat"), Prompt("a mat for the dog sat"), Prompt("the"), Prompt("on the mat and the cat")]


def model(name: str = "llama", *, sharpness: float = 30.0) -> Any:
    """A tiny model with opinions: freshly drawn ones have all tokens nearly alike."""
    torch.manual_seed(0)
    made = {**tiny_architectures.DENSE, **tiny_architectures.EXPERTS}[name]().eval()
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(sharpness)
    return made


def answers(of: Any, prompts: list[Prompt] = PROMPTS, **settings: Any) -> list[Answer]:
    usual = {"samples": 3, "seed": 5, "max_tokens": 8, "batch": 4, "context": 32}
    return generate_answers(of, TOKENIZER, prompts, **{**usual, **settings})


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3 moe"])
def test_neither_the_batch_nor_the_order_of_prompts_changes_an_answer(name: str) -> None:
    of = model(name)
    whole = answers(of)

    assert [(each.prompt_index, each.sample_index) for each in whole] == [(p, s) for p in range(4) for s in range(3)]
    assert answers(of, batch=1) == answers(of, batch=64) == whole
    assert [each for at in range(4) for each in answers(of, PROMPTS[at : at + 1], first=at)] == whole


def test_the_head_gets_contiguous_inputs() -> None:
    """Of a slice, torch would copy the weight of the head once for each answer of the batch."""
    of, contiguous = model(), []
    of.get_output_embeddings().register_forward_hook(lambda _, args, __: contiguous.append(args[0].is_contiguous()))
    answers(of)

    assert contiguous
    assert all(contiguous)


def test_every_answer_has_random_numbers_of_its_own() -> None:
    of = model()
    same = [Prompt("the cat")] * 3
    found = answers(of, same)

    assert len({each.ids for each in found}) > 6
    assert answers(of, same, seed=6) != found
    assert [each.ids for each in answers(of, same, max_tokens=4)] == [each.ids[:4] for each in found]


def test_similar_models_rarely_draw_different_tokens() -> None:
    """With Gumbel noise for each token, the share is at most 2 TV / (1 + TV) (Bavarian et al. 2020).

    Inverting the cumulative distribution exceeds that: a small shift moves the thresholds of all later tokens.
    """
    near, samples = model(), 3000
    with torch.no_grad():
        weight = near.get_output_embeddings().weight
        weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    p, q = (forwarded(of, PROMPTS[0].ids(TOKENIZER))[-1].exp() for of in (model(), near))
    distance = float((p - q).abs().sum()) / 2
    drawn = [answers(of, PROMPTS[:1], samples=samples, max_tokens=1, batch=1000) for of in (model(), near)]
    different = sum(one.ids != other.ids for one, other in zip(*drawn, strict=True)) / samples
    bound = 2 * distance / (1 + distance)

    assert 0.01 < distance < 0.2
    assert distance - 3 * (distance / samples) ** 0.5 < different < bound + 3 * (bound / samples) ** 0.5

    above, below = p.cumsum(-1), q.cumsum(-1)
    overlaps = torch.minimum(above, below) - torch.maximum(above - p, below - q)
    assert 1 - float(overlaps.clamp(min=0).sum()) > bound


def test_a_larger_vocabulary_does_not_change_the_noise_of_the_other_tokens() -> None:
    grown = model()
    grown.resize_token_embeddings(grown.config.vocab_size + 7, mean_resizing=False)
    with torch.no_grad():
        grown.get_output_embeddings().weight[-7:] = 0.0
    p = forwarded(grown, PROMPTS[0].ids(TOKENIZER))[-1].exp()[-7:].sum()
    first = [[each.ids[0] for each in answers(of, samples=30, max_tokens=1)] for of in (model(), grown)]
    differing = [two for one, two in zip(*first, strict=True) if one != two]

    assert p < 0.5
    assert all(each >= model().config.vocab_size for each in differing)


def test_a_model_whose_weights_are_streamed_writes_the_same() -> None:
    streamed = model()
    weights = {name: each.clone() for name, each in streamed.state_dict().items()}
    streamed = cpu_offload(streamed, execution_device=torch.device("cpu"), state_dict=weights)

    assert streamed.device.type == "meta"
    assert answers(streamed) == answers(model())


def forwarded(of: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = of(torch.tensor([ids])).logits[0]
    return logits.double().log_softmax(-1)


def test_first_tokens_have_the_model_s_probabilities() -> None:
    of = model()
    found = answers(of, PROMPTS[:1], samples=3000, max_tokens=1, batch=1000)
    p = forwarded(of, PROMPTS[0].ids(TOKENIZER))[-1].exp().numpy()
    drawn = np.bincount([each.ids[0] for each in found], minlength=len(p))
    common = p * 3000 > 5
    observed, expected = [np.append(x[common], x[~common].sum()) for x in (drawn, 3000 * p)]

    assert common.sum() > 5
    assert stats.chisquare(observed, expected).pvalue > 0.001


def test_answers_are_sampled_at_temperature_one_whatever_the_model_s_settings_say() -> None:
    """Over answers from P, -log p(t) has the mean of P's entropy: a temperature, a top-p or a penalty changes it."""
    of = model()
    settings = {"temperature": 0.1, "top_k": 1, "top_p": 0.1, "repetition_penalty": 9.0, "do_sample": True}
    for name, value in settings.items():
        setattr(of.generation_config, name, value)
    kept = of.generation_config
    surprise = []
    for answer in answers(of, samples=40, batch=160):
        log_p = forwarded(of, [*answer.prompt_ids, *answer.ids])[len(answer.prompt_ids) - 1 : -1]
        entropy = -(log_p.exp() * log_p).sum(-1)
        surprise.append(float((-log_p[range(len(answer.ids)), answer.ids] - entropy).sum()))

    assert abs(np.mean(surprise)) < 3 * np.std(surprise) / np.sqrt(len(surprise))
    assert of.generation_config is kept


def test_an_answer_stops_with_its_end_and_the_end_is_scored() -> None:
    of = model()
    ended = [each for each in answers(of, samples=100, batch=400) if len(each.ids) < 8]

    assert ended  # of 400 answers of 8 tokens
    for answer in ended:
        assert of.generation_config.eos_token_id == TOKENIZER.eos_token_id + 1 == 2
        assert answer.ids[-1] in (1, 2)
        assert not {1, 2} & set(answer.ids[:-1])
        assert "</s>" not in answer.text


def test_an_answer_s_document_scores_the_answer_and_not_the_prompt() -> None:
    answer = answers(model())[4]
    document = answer.to_document()

    assert document.name == "prompt 2, answer 2"
    assert document.ids == (*answer.prompt_ids, *answer.ids)
    assert document.scored == (False,) * len(answer.prompt_ids) + (True,) * len(answer.ids)


def test_a_prompt_that_leaves_no_room_is_named() -> None:
    with refused("prompt-length", UsageError, match="Prompt 9 is too long"):
        answers(model(), [Prompt("the cat sat on the mat and the dog sat on the cat")], first=8, context=15)
