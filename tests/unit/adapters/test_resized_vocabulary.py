"""Adapters with tokens of their own, as PEFT saves them after `resize_token_embeddings`."""

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import deltarank
import peft_adapters as made

ROWS = 6


def longer(base: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + ROWS, mean_resizing=False)
    return model


def test_a_resized_vocabulary_is_read_as_peft_reads_it(tmp_path: Path) -> None:
    """PEFT saves such a module three times: plain, and under `modules_to_save` and `original_module`."""
    base, adapter = made.write_base(made.llama, tmp_path / "base"), tmp_path / "adapter"
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saved = ["embed_tokens", "lm_head"]
        model = get_peft_model(longer(base), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name or "modules_to_save." in name:
                    weight.add_(0.1 * torch.randn(weight.shape))
        model.save_pretrained(adapter)
        before = {name: w.double() for name, w in longer(base).state_dict().items()}
        after = PeftModel.from_pretrained(longer(base), adapter).merge_and_unload().state_dict()
    assert any(".original_module." in key for key in load_file(adapter / "adapter_model.safetensors"))
    results = deltarank.compare(base, adapter, ranks=[2])
    vocabulary = {name: before[name].shape[0] - ROWS for name in ("model.embed_tokens.weight", "lm_head.weight")}
    energies = {each.name: each.energy for each in (*results.matrices, *results.skipped)}
    for name, w in before.items():
        rows = vocabulary.get(name, w.shape[0])
        assert energies[name] == pytest.approx(float(((after[name][:rows] - w[:rows]) ** 2).sum()), rel=1e-5), name
    assert "does not load" not in results.verdict.sentences[0]
    assert not any("nothing" in note for note in results.notes)
