"""Prefixes, vocabularies in layers for multi-token prediction, norms of two dimensions, Mamba: figures and adapters."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import deltarank
from deltarank.results import Outcome, Results, VerdictKind
from tiny_architectures import architecture, logits

Tensors = dict[str, Tensor]
SIDE, VOCABULARY = 32, 320


def write(folder: Path, tensors: Tensors, config: dict[str, object] | None = None) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def low_rank(tensor: Tensor, rank: int) -> Tensor:
    return tensor + 0.002 * torch.randn(len(tensor), rank) @ torch.randn(rank, tensor.shape[1])


def flux() -> Tensors:
    torch.manual_seed(0)
    shapes = {"img_attn.qkv": (144, 48), "img_attn.proj": (48, 48), "img_mlp.0": (192, 48)}
    weights = {f"double_blocks.{i}.{x}.weight": 0.05 * torch.randn(shape) for i in "01" for x, shape in shapes.items()}
    return {**weights, "double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(12)}


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_a_finetune_that_comfyui_saved_has_the_figures_of_the_plain_one(tmp_path: Path, prefix: str) -> None:
    base = flux()
    tuned = {name: low_rank(tensor, 8) if tensor.ndim == 2 else tensor for name, tensor in base.items()}
    prefixed = {prefix + name: tensor for name, tensor in tuned.items()}
    beside = {"text_encoders.clip_l.layers.0.q_proj.weight": torch.randn(32, 32)}
    before = write(tmp_path / "base", base)
    plain, saved, whole = (
        deltarank.compare(before, write(tmp_path / name, tensors), ranks=(4, 8))
        for name, tensors in {"plain": tuned, "saved": prefixed, "whole": prefixed | beside}.items()
    )

    assert (plain.verdict.kind, plain.verdict.signal_rank) == (VerdictKind.MERGED_LORA, 8)
    assert plain.totals == saved.totals == whole.totals
    assert saved.verdict.sentences[0].replace("saved", "plain") == plain.verdict.sentences[0]
    assert "not counting 2.7 % of its parameters" in whole.verdict.sentences[0]


def mtp_model() -> Tensors:
    """The last layer is for multi-token prediction, and repeats embedding and head."""
    torch.manual_seed(0)
    tensors = {"model.embed_tokens.weight": (VOCABULARY, SIDE), "lm_head.weight": (VOCABULARY, SIDE)}
    tensors |= {f"model.layers.{i}.self_attn.{w}_proj.weight": (SIDE, SIDE) for i in (0, 1) for w in "qkvo"}
    made = {name: 0.05 * torch.randn(shape) for name, shape in tensors.items()}
    last = "model.layers.1."
    return made | {
        f"{last}embed_tokens.weight": made["model.embed_tokens.weight"].clone(),
        f"{last}shared_head.head.weight": made["lm_head.weight"].clone(),
        f"{last}eh_proj.weight": 0.05 * torch.randn(SIDE, 2 * SIDE),
    }


def test_copies_of_the_vocabulary_for_multi_token_prediction_change_no_figure(tmp_path: Path) -> None:
    base = mtp_model()
    copies = {"model.layers.1.embed_tokens.weight", "model.layers.1.shared_head.head.weight"}
    new = {name: low_rank(tensor, 4) for name, tensor in base.items()}
    for name, copy in (("model.embed_tokens.weight", "embed_tokens"), ("lm_head.weight", "shared_head.head")):
        new[name] = base[name] + 0.05 * torch.randn(VOCABULARY, SIDE)  # in full rank
        new[f"model.layers.1.{copy}.weight"] = new[name]
    folders = write(tmp_path / "base", base), write(tmp_path / "fine", {n: t.clone() for n, t in new.items()})
    without = write(tmp_path / "without", {n: t.clone() for n, t in new.items() if n not in copies})
    results, plain = (deltarank.compare(folders[0], tuned, ranks=(8,)) for tuned in (folders[1], without))
    adapter = deltarank.extract(*folders, output=tmp_path / "adapter", rank=8, server="peft")

    assert results.totals.whole.loss(8).energy_kept > 0.999
    assert results.totals.whole.losses == plain.totals.whole.losses
    outcomes = [{skip.name: skip.outcome for skip in each.skipped if skip.name in copies} for each in (results, plain)]
    assert outcomes == [dict.fromkeys(copies, Outcome.EMBEDDING), dict.fromkeys(copies, Outcome.DUPLICATE)]
    assert {matrix.name for matrix in adapter.matrices} == {name for name in base if "_proj" in name}


def test_norms_of_two_dimensions_are_norms_in_figures_and_in_the_adapter(tmp_path: Path) -> None:
    """Command R+ norms q and k by a weight of (heads, head_dim)."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    make = architecture("cohere", vocab_size=48, num_hidden_layers=2, use_qk_norm=True, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "base")
    norms = [name for name, weight in model.named_parameters() if "_norm" in name and weight.ndim == 2]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in norms:
                weight.add_(0.1 * torch.randn_like(weight))
            elif weight.ndim == 2 and "layers" in name:
                weight.copy_(low_rank(weight, 2))
    model.save_pretrained(tmp_path / "fine")
    folders = tmp_path / "base", tmp_path / "fine"
    results: Results = deltarank.compare(*folders, ranks=(2, 4))
    deltarank.extract(*folders, output=tmp_path / "adapter", rank=8, server="peft")

    assert len(norms) == 4
    assert (results.verdict.kind, results.verdict.signal_rank) == (VerdictKind.MERGED_LORA, 2)
    assert {skip.name: skip.outcome for skip in results.skipped if skip.name in norms} == dict.fromkeys(
        norms, Outcome.NOT_A_MATRIX
    )
    apart = (logits(folders[1]) - logits(folders[0], tmp_path / "adapter")).abs().max()
    assert apart < 1e-3 * (logits(folders[1]) - logits(folders[0])).abs().max()


def test_mamba_is_measured_without_its_state_space(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "state_size": 8, "num_hidden_layers": 1, "time_step_rank": 4, "use_mambapy": False}
    model = architecture("mamba", vocab_size=48, **sizes)()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "fine")
    results = deltarank.compare(tmp_path / "base", tmp_path / "fine", ranks=(4,))
    mixer = "backbone.layers.0.mixer"

    assert {matrix.name for matrix in results.matrices} == {
        f"{mixer}.{name}_proj.weight" for name in ("in", "x", "out")
    }
    assert {f"{mixer}.A_log", f"{mixer}.dt_proj.weight"} <= {skip.name for skip in results.skipped}
