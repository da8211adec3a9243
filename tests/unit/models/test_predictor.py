"""Predictions of a model: the inputs of its output head, and the head that turns them into its logits."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from deltarank.checkpoints import open_checkpoint
from deltarank.errors import JobError
from deltarank.models import (
    EditedWeights,
    Head,
    Predictor,
    Window,
    batch_windows,
    load_model,
    read_skeleton,
    stream_model,
    translate_out_of_memory,
)
from tiny_architectures import tokens

CPU = torch.device("cpu")


def windows(rows: int = 4) -> list[Window]:
    """Of unlike lengths, so that batches are padded."""
    return [Window.from_mask(ids[: 12 - 2 * i].tolist(), [True] * (12 - 2 * i)) for i, ids in enumerate(tokens(rows))]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_head_on_what_is_kept_gives_the_logits(llama: tuple[Path, Path], streamed: bool) -> None:
    with open_checkpoint(llama[1]) as tuned:
        plan, weights = read_skeleton(tuned), EditedWeights(tuned, [], CPU)
        if streamed:
            model, own_head = stream_model(plan, weights, dtype=torch.float32, device=CPU)
        else:
            model, own_head = load_model(plan, weights, dtype=torch.float32, device=CPU), None
        predictor = Predictor(model, CPU, own_head)
        kept = predictor.head_inputs(windows())
        head = predictor.head

    assert kept[0].shape == (11, 32)
    whole = AutoModelForCausalLM.from_pretrained(llama[1], dtype=torch.float32)
    for window, each in zip(windows(), kept, strict=True):
        with torch.inference_mode():
            truth = whole(input_ids=torch.tensor([window.ids])).logits[0, list(window.rows)]
        assert torch.allclose(head.logits(each), truth, atol=1e-5)


def test_logits_are_kept_where_the_head_is_not_the_end(llama: tuple[Path, Path]) -> None:
    whole = AutoModelForCausalLM.from_pretrained(llama[1], dtype=torch.float32)
    inner = whole.forward

    def capped(*args: object, **options: object) -> object:
        out = inner(*args, **options)
        out.logits = 3 * torch.tanh(out.logits / 3)
        return out

    whole.forward = capped
    predictor = Predictor(whole, CPU)
    kept = predictor.head_inputs(windows())

    assert predictor.head == Head(None)
    with torch.inference_mode():
        truth = capped(input_ids=torch.tensor([windows()[0].ids])).logits[0, :-1]  # type: ignore[attr-defined]
    assert torch.allclose(predictor.head.logits(kept[0]), truth, atol=1e-5)


def test_only_scored_tokens_are_kept() -> None:
    window = Window.from_mask([5, 6, 7, 8], [False, False, True, True])
    assert window.rows == (1, 2)
    assert window.targets == (7, 8)


def test_each_window_is_in_one_batch_and_none_is_too_large() -> None:
    many = [Window.from_mask([1] * length, [True] * length) for length in (3, 9, 9, 2, 5, 9)]
    parts = batch_windows(many, size=None, tokens=18)
    assert sorted(i for part in parts for i in part) == list(range(6))
    assert all(len(part) * max(len(many[i].ids) for i in part) <= 18 for part in parts)
    assert [len(part) for part in batch_windows(many, size=4, tokens=1)] == [4, 2]


def test_an_out_of_memory_error_suggests_a_smaller_batch() -> None:
    """As torch says it on a CPU; half of the batch is advised."""
    with pytest.raises(JobError) as caught, translate_out_of_memory(CPU, batch=8):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert caught.value.slug == "out-of-memory"
    assert "--batch 4" in caught.value.cure
    with pytest.raises(JobError, match="The model does not fit") as caught, translate_out_of_memory(CPU):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "batch" not in caught.value.message + caught.value.cure
    with pytest.raises(RuntimeError, match="shape"), translate_out_of_memory(CPU, batch=8):
        torch.ones(2, 3) @ torch.ones(2, 3)
