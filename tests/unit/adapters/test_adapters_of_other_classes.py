"""Adapters made for another class than the one that config.json of their base names: for embeddings and for labels."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification

import deltarank
import peft_adapters as made

CASES: dict[str, tuple[Any, str | None, str]] = {
    "embeddings": (AutoModel, "FEATURE_EXTRACTION", "LlamaModel"),
    "no task": (AutoModel, None, "LlamaModel"),
    "labels": (AutoModelForSequenceClassification, "SEQ_CLS", "LlamaForSequenceClassification"),
    "labels of tokens": (AutoModelForTokenClassification, "TOKEN_CLS", "LlamaForTokenClassification"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_class_that_the_adapter_states_names_its_modules(case: str, tmp_path: Path) -> None:
    make, task, name = CASES[case]
    base, adapter = made.write_base(made.llama, tmp_path / "base"), tmp_path / "adapter"
    extra = {} if make is AutoModel else {"num_labels": 5}
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(make.from_pretrained(base, **extra), LoraConfig(r=2, task_type=task))
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_" in key:
                    weight.add_(0.1 * torch.randn(weight.shape))
        model.save_pretrained(adapter)
        before = {key: w.double() for key, w in make.from_pretrained(base, **extra).state_dict().items()}
        after = PeftModel.from_pretrained(make.from_pretrained(base, **extra), adapter).merge_and_unload().state_dict()
    expected = sum(float(((after[key] - w) ** 2).sum()) for key, w in before.items() if "_proj" in key)
    results = deltarank.compare(base, adapter, ranks=[2])
    assert results.totals.whole.energy == pytest.approx(expected, rel=1e-5)
    assert "does not load" not in results.verdict.sentences[0]
    assert any(f"into {name}" in note for note in results.notes)
