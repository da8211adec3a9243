"""The plan of `outputs`: when a model is streamed, and what its figures are made of."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from deltarank.checkpoints import open_checkpoint
from deltarank.divergence import Document
from deltarank.jobs.outputs import OutputsOptions, OutputsPlan
from deltarank.jobs.outputs.attribution import matrices_by_part
from deltarank.jobs.outputs.inputs import OutputsInputs
from deltarank.jobs.outputs.low_rank import lora_matrices
from deltarank.jobs.outputs.model_pair import ModelPair
from deltarank.runtime import FIXED_MEMORY


@pytest.fixture(scope="module")
def plan(llama: tuple[Path, Path]) -> Iterator[OutputsPlan]:
    options = OutputsOptions(ranks=(2, 4), samples=0, texts=("t",), dtype="float32", attribute="layer")
    document = Document("t", (1,) * 100, (False, *(True,) * 99))
    tokenizer: Any = None
    with open_checkpoint(llama[0]) as base, open_checkpoint(llama[1]) as finetune:
        models = ModelPair.of(base, finetune, options)
        yield OutputsPlan(options, models, OutputsInputs(tokenizer, [("t", [document] * 3)], (), {}, ("hm",)), None)


def test_a_model_is_streamed_when_it_takes_more_than_the_usable_memory(plan: OutputsPlan) -> None:
    enough = int(plan.memory.whole_model / 0.85) + 1

    assert not plan.memory.must_stream
    assert not replace(plan, available_memory=enough).memory.must_stream
    streamed = replace(plan, available_memory=enough - 2)
    assert streamed.memory.must_stream
    assert streamed.time.per_token > plan.time.per_token
    assert streamed.memory.tokens_at_once > plan.memory.tokens_at_once


def test_the_time_is_that_of_the_decomposition_the_models_and_the_parts(plan: OutputsPlan) -> None:
    models = len(plan.candidates) + 1

    assert plan.seconds_per_control == plan.time.reading
    assert plan.tokens_per_model == 300
    assert plan.part_count == 2
    parts = plan.time.loading + 2 * 300 / 2 * plan.time.per_token  # half of the layers; all at once are a candidate
    fixed = plan.decomposition.work_seconds + plan.summary_seconds
    assert plan.seconds == pytest.approx(fixed + models * plan.time.model + parts)


@pytest.mark.parametrize(
    ("samples", "prompts", "batches"), [(16, 3, 6), (9, 1, 2), (8, 3, 3), (3, 5, 3), (1, 8, 1), (1, 9, 2), (0, 0, 0)]
)
def test_answers_are_generated_in_batches(plan: OutputsPlan, samples: int, prompts: int, batches: int) -> None:
    assert replace(plan.time, prompts=prompts, samples=samples, batch=8).answer_batches == batches


def test_a_batch_of_answers_is_as_large_as_its_keys_and_values_allow(plan: OutputsPlan) -> None:
    assert plan.memory.skeleton.cache_entries == 2 * 2 * 2 * 8  # keys and values, layers, heads, width
    entry_bytes = 4 * plan.memory.skeleton.cache_entries
    assert plan.memory.answers_at_once(100) == 32
    assert plan.memory.answers_at_once(2**30 // entry_bytes // 20) == 20
    assert plan.memory.answers_at_once(2**30) == 8
    assert replace(plan, options=replace(plan.options, batch=3)).answers_at_once == 3


def test_peak_memory_is_that_of_the_decomposition_where_it_is_larger(
    plan: OutputsPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert plan.peak_memory == plan.memory.whole_model
    monkeypatch.setattr("deltarank.jobs.outputs.planned_memory._CHUNKS_OF_LOGITS", 0)

    assert plan.peak_memory == FIXED_MEMORY + max(step.memory for step in plan.decomposition.steps)


def test_only_matrices_with_factors_are_decomposed(plan: OutputsPlan) -> None:
    names = {step.pair.name for step in plan.decomposition.steps}

    assert len(names) == 14
    assert all("_proj" in name for name in names)


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_the_weights_have_the_bytes_that_transformers_counts(plan: OutputsPlan, dtype: str, itemsize: int) -> None:
    folder = plan.models.finetune.reference.ref
    model = AutoModelForCausalLM.from_pretrained(folder)

    assert replace(plan, options=replace(plan.options, dtype=dtype)).memory.weights == model.num_parameters() * itemsize


@pytest.mark.parametrize("unit", ["module", "layer"])
def test_every_matrix_with_factors_is_in_one_part(plan: OutputsPlan, unit: str) -> None:
    parts = matrices_by_part(plan.models.pairing, unit)
    matrices = [each.name for each in lora_matrices(plan.models.pairing.pairs)]

    assert sorted(name for names in parts.values() for name in names) == sorted(matrices)


def test_as_text_and_as_json(plan: OutputsPlan) -> None:
    lines = plan.lines()

    assert "text        3 documents, 300 tokens" in lines
    assert "parts       2 layers, one at a time" in lines
    assert "note: hm" in lines
    assert any("an unknown amount is available" in line for line in lines)
    assert plan.to_plain()["room"] is None
    assert plan.to_plain()["candidates"] == list(plan.candidates)
