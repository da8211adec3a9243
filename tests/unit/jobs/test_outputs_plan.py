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
from tiny_architectures import DENSE, write_pair


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OutputsPlan]:
    folders: tuple[Path, Path] = write_pair(DENSE["llama"], tmp_path_factory.mktemp("llama"))
    options = OutputsOptions(ranks=(2, 4), samples=0, texts=("t",), dtype="float32", attribute="layer")
    document = Document("t", (1,) * 100, (False, *(True,) * 99))
    tokenizer: Any = None
    with open_checkpoint(folders[0]) as base, open_checkpoint(folders[1]) as finetune:
        models = ModelPair.of(base, finetune, options)
        yield OutputsPlan(options, models, OutputsInputs(tokenizer, [("t", [document] * 3)], (), {}, ("hm",)), None)


def test_a_model_is_streamed_when_it_takes_more_than_the_usable_memory(plan: OutputsPlan) -> None:
    enough = int(plan.whole_model_memory / 0.85) + 1

    assert not plan.streams
    assert not replace(plan, available_memory=enough).streams
    streamed = replace(plan, available_memory=enough - 2)
    assert streamed.streams
    assert streamed.seconds_per_token > plan.seconds_per_token
    assert streamed.tokens_at_once > plan.tokens_at_once


def test_the_time_is_that_of_the_decomposition_the_models_and_the_parts(plan: OutputsPlan) -> None:
    models = len(plan.candidates) + 1

    assert plan.tokens == 300
    assert plan.parts == 2
    assert plan.seconds == pytest.approx(
        plan.decomposition.seconds + models * plan.seconds_per_model + 2 * 300 * plan.seconds_per_token
    )


def test_only_matrices_with_factors_are_decomposed(plan: OutputsPlan) -> None:
    names = {step.pair.name for step in plan.decomposition.steps}

    assert len(names) == 14
    assert all("_proj" in name for name in names)


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_the_weights_have_the_bytes_that_transformers_counts(plan: OutputsPlan, dtype: str, itemsize: int) -> None:
    folder = plan.models.finetune.reference.ref
    model = AutoModelForCausalLM.from_pretrained(folder)

    assert replace(plan, options=replace(plan.options, dtype=dtype)).weight_bytes == model.num_parameters() * itemsize


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
