"""LoRAs on convolutions, as PEFT adds them: compared with PEFT's own merge."""

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel, HubertConfig, HubertModel, ViTConfig, ViTModel

import deltarank
import peft_adapters as made
from deltarank.errors import AdapterError
from deltarank.results import FitKind, TensorChange
from refusals import refused

_SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
MODELS = {
    "two dimensions": (
        lambda: ViTModel(ViTConfig(**_SMALL, image_size=16, patch_size=4)),
        {"target_modules": ["projection"]},
        "embeddings.patch_embeddings.projection.weight",
    ),
    "one dimension": (
        lambda: HubertModel(
            HubertConfig(
                **_SMALL, conv_dim=(32, 32), conv_stride=(2, 2), conv_kernel=(3, 3), num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
            )
        ),
        {"target_modules": ["conv_layers.1.conv"]},
        "feature_extractor.conv_layers.1.conv.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_a_lora_on_a_convolution_is_what_peft_merges(case: str, tmp_path: Path) -> None:
    make, config, name = MODELS[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        make().save_pretrained(tmp_path / "base")
        adapted = get_peft_model(AutoModel.from_pretrained(tmp_path / "base"), LoraConfig(r=3, lora_alpha=6, **config))
        with torch.no_grad():
            for key, weight in adapted.named_parameters():
                if "lora_B" in key:
                    weight.normal_(0, 0.1)
        adapted.save_pretrained(tmp_path / "adapter")
        merged = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
        merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    seen = deltarank.verify(tmp_path / "base", tmp_path / "merged", tmp_path / "adapter")
    rows = {row.name: row for row in seen.tensors}

    changed = [row.name for row in seen.tensors if row.change is TensorChange.LORA]
    assert name in changed
    assert not torch.equal(made.tensors(tmp_path / "base")[name], made.tensors(tmp_path / "merged")[name])
    assert seen.kind is FitKind.OPTIMAL
    assert rows[name].energies.lost == pytest.approx(0, abs=1e-9)
    assert rows[name].rank == 3
    with refused("adapter-refused", AdapterError, match="convolutions"):
        deltarank.verify(tmp_path / "base", tmp_path / "merged", tmp_path / "adapter", server="vllm")


def test_a_lora_on_a_convolution_in_groups_is_refused(tmp_path: Path) -> None:
    """PEFT applies it, and has no product of two matrices for it."""
    base = made.write_base(made.llama, tmp_path / "base")
    stem = "base_model.model.model.conv"
    weights = {f"{stem}.lora_A.weight": torch.ones(4, 8, 3), f"{stem}.lora_B.weight": torch.ones(8, 2, 1)}
    adapter = made.write_adapter(tmp_path / "adapter", weights, r=4, target_modules=["conv"])
    with refused("adapter-unsupported", AdapterError, match="groups"):
        deltarank.compare(base, adapter, output=tmp_path / "run")
