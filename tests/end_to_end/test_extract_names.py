"""Adapters name modules as the class in transformers does, which renames what checkpoints contain."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, MambaConfig, MambaForCausalLM, PreTrainedModel

import deltarank

TEXT: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 32,
}
QWEN_VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "mlp_ratio": 2}
QWEN25_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 4,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}
SECTIONS = {"rope_type": "default", "mrope_section": [1, 1, 2]}
LLAMA = TEXT | {"model_type": "llama"}


def vision_language(model_type: str, **config: Any) -> Callable[[], PreTrainedModel]:
    def make() -> PreTrainedModel:
        made = AutoConfig.for_model(model_type, **config)
        return transformers.AutoModelForImageTextToText.from_config(made)

    return make


RENAMED: Mapping[str, Callable[[], PreTrainedModel]] = {
    "gemma3": vision_language(
        "gemma3",
        text_config=TEXT | {"head_dim": 8, "sliding_window": 16, "layer_types": ["full_attention"] * 2},
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=61,
        eoi_token_index=62,
    ),
    "llava": vision_language(
        "llava",
        text_config=LLAMA,
        vision_config=VISION | {"model_type": "clip_vision_model"},
        image_token_index=60,
    ),
    "paligemma": vision_language(
        "paligemma",
        text_config=TEXT | {"model_type": "gemma", "head_dim": 8},
        vision_config=VISION | {"model_type": "siglip_vision_model"},
        image_token_index=60,
        projection_dim=32,
        hidden_size=32,
    ),
    "qwen2_vl": vision_language(
        "qwen2_vl", text_config=TEXT | {"rope_parameters": SECTIONS}, vision_config=QWEN_VISION, image_token_id=60
    ),
    "qwen2_5_vl": vision_language(
        "qwen2_5_vl", text_config=TEXT | {"rope_parameters": SECTIONS}, vision_config=QWEN25_VISION, image_token_id=60
    ),
    "mistral3": vision_language(
        "mistral3",
        text_config=TEXT | {"model_type": "mistral", "head_dim": 8},
        vision_config=VISION | {"model_type": "pixtral", "head_dim": 8},
        image_token_index=60,
    ),
    "llava_next": vision_language(
        "llava_next",
        text_config=LLAMA,
        vision_config=VISION | {"model_type": "clip_vision_model"},
        image_token_index=60,
        image_grid_pinpoints=[[16, 16]],
    ),
}


def write_pair(make: Callable[[], PreTrainedModel], home: Path, changed: str = "layers.") -> tuple[Path, Path]:
    """A base as transformers saves it, and a finetune whose matrices in layers changed by rank 2 each."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.15 if weight.ndim > 1 else 1 + 0.05 * torch.randn_like(weight))
        model.save_pretrained(home / "base")
        for name, weight in model.named_parameters():
            if changed in name and weight.ndim == 2 and name.endswith("weight"):
                weight.add_(torch.randn(weight.shape[0], 2) @ torch.randn(2, weight.shape[1]), alpha=0.02)
        model.save_pretrained(home / "finetune")
    return home / "base", home / "finetune"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        ids = torch.randint(3, 50, (2, 10), generator=torch.Generator().manual_seed(3))
        out: torch.Tensor = model.eval()(input_ids=ids).logits
        return out


def load(folder: Path) -> PreTrainedModel:
    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32)


def served(base: Path, adapter: Path) -> PeftModel:
    """PEFT's warnings of missing keys are errors here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # between PEFT and transformers
        return PeftModel.from_pretrained(load(base), adapter)


@pytest.mark.parametrize(("name", "server"), [("gemma3", "peft"), *((name, "portable") for name in RENAMED)])
def test_peft_gives_the_finetune_s_logits_on_a_class_that_renames(name: str, server: str, tmp_path: Path) -> None:
    base, finetune = write_pair(RENAMED[name], tmp_path)
    names = load_file(base / "model.safetensors").keys()
    adapter = deltarank.extract(base, finetune, rank=8, server=server, dtype="float32", output=tmp_path / "a")
    target, start = logits(load(finetune)), logits(load(base))

    assert not {matrix.path + ".weight" for matrix in adapter.matrices} <= names  # the class has other names
    assert adapter.load_check.checked
    assert adapter.load_check.loads
    assert (target - start).abs().max() > 0.05
    assert (logits(served(base, tmp_path / "a")) - target).abs().max() < 1e-4


def test_the_hub_s_older_names_give_the_same_adapter(tmp_path: Path) -> None:
    """google/gemma-3 is stored as language_model.model.layers, with lm_head inside."""
    folders = write_pair(RENAMED["gemma3"], tmp_path)
    older = [tmp_path / "older base", tmp_path / "older finetune"]
    for folder, copy in zip(folders, older, strict=True):
        copy.mkdir()
        weights = load_file(folder / "model.safetensors")
        new = {name.replace("model.language_model.", "language_model.model."): w for name, w in weights.items()}
        save_file(new, copy / "model.safetensors", metadata={"format": "pt"})
        (copy / "config.json").write_text((folder / "config.json").read_text())
    adapters = [
        deltarank.extract(*pair, rank=8, dtype="float32", output=tmp_path / f"a{i}")
        for i, pair in enumerate((folders, older))
    ]
    first, second = (load_file(adapter.folder / "adapter_model.safetensors") for adapter in adapters)

    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_peft_refuses_for_an_architecture_is_left_out_with_its_reason(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=64, hidden_size=32, state_size=8, num_hidden_layers=2, time_step_rank=4)
    base, finetune = write_pair(lambda: MambaForCausalLM(config), tmp_path, changed="_proj")
    adapter = deltarank.extract(base, finetune, rank=8, server="peft", dtype="float32", output=tmp_path / "a")
    model = served(base, tmp_path / "a")
    reasons = {tensor.name: tensor.reason for tensor in adapter.budget.tensors}

    assert {matrix.module for matrix in adapter.matrices} == {"mixer.in_proj", "mixer.x_proj"}
    assert "Module 'out_proj' is incompatible with Mamba" in reasons["backbone.layers.0.mixer.out_proj.weight"]
    merged, target = model.merge_and_unload().state_dict(), load(finetune).state_dict()
    for matrix in adapter.matrices:
        assert torch.allclose(merged[matrix.name], target[matrix.name], atol=1e-5)


def test_without_a_class_the_result_says_that_names_were_not_checked(tmp_path: Path) -> None:
    base, finetune = write_pair(RENAMED["llava"], tmp_path)
    for folder in (base, finetune):
        (folder / "config.json").unlink()
    adapter = deltarank.extract(base, finetune, rank=8, output=tmp_path / "a")
    told = json.loads((tmp_path / "a" / "deltarank.json").read_text())["load_check"]

    assert told["checked"] is False
    assert told["loads"] is None
    assert "there is no config.json" in told["reason"]
    assert "was not checked" in (tmp_path / "a" / "README.md").read_text()
    assert adapter == deltarank.ExtractedAdapter.load(tmp_path / "a")
