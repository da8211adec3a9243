"""Checkpoints as transformers writes them: what is measured, what is left over, and the numbers themselves."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from files import read
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from deltarank.checkpoints import Pairing, open_checkpoint, pair_checkpoints
from deltarank.results import Outcome
from tiny_architectures import DENSE, EXPERTS, SIZES, Make, architecture, write_pair


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """By the library: what our reader is held against."""
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def planned(make: Make, tmp_path: Path) -> Pairing:
    """The plan, after every pair and summed in it was read and compared with the library's reading."""
    folders = write_pair(make, tmp_path, dtype=torch.bfloat16, shard_size="20KB")
    ours, theirs = stored(folders[0]), stored(folders[1])
    with open_checkpoint(folders[0]) as base, open_checkpoint(folders[1]) as finetune:
        assert len(finetune.reference.files) > 1
        plan = pair_checkpoints(base, finetune)
        for pair in (*plan.pairs, *plan.summed):
            fused = pair.name.endswith("]")
            at = int(pair.name[pair.name.rindex("[") + 1 : -1]) if fused else slice(None)
            for got, want in zip(read(pair), (ours[pair.base.tensor], theirs[pair.finetune.tensor]), strict=True):
                assert torch.equal(got, (want[at] if fused else want).reshape(got.shape))
    covered = {pair.finetune.tensor for pair in (*plan.pairs, *plan.summed)} | {x.name for x in plan.skipped}
    assert set(theirs) == covered
    assert plan.skipped == ()
    return plan


def modules(plan: Pairing) -> Counter[str]:
    """How many matrices of each module there are in a layer."""
    assert {0, 1} == {pair.layer for pair in plan.pairs}
    return Counter(pair.module for pair in plan.pairs if pair.layer == 1)


ATTENTION = {f"self_attn.{x}_proj": 1 for x in "qkvo"}


def test_gpt2_is_measured_as_stored_with_a_note(tmp_path: Path) -> None:
    plan = planned(DENSE["gpt2"], tmp_path)
    assert modules(plan) == {"attn.c_attn": 1, "attn.c_proj": 1, "mlp.c_fc": 1, "mlp.c_proj": 1}
    assert {(32, 96)} == {pair.shape for pair in plan.pairs if pair.module == "attn.c_attn"}
    assert any("Conv1D: inputs x outputs" in note for note in plan.notes)
    embeddings = {x.name.split(".")[-2] for x in plan.summed if x.outcome is Outcome.EMBEDDING}
    assert {"wte", "wpe"} == embeddings


def test_a_tied_llama_needs_no_head(tmp_path: Path) -> None:
    plan = planned(DENSE["tied llama"], tmp_path)
    assert modules(plan) == ATTENTION | {"mlp.gate_proj": 1, "mlp.up_proj": 1, "mlp.down_proj": 1}
    assert [x.name for x in plan.summed if x.outcome is Outcome.EMBEDDING] == ["model.embed_tokens.weight"]
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("name", "experts"),
    [
        ("mixtral", {f"block_sparse_moe.experts.w{i}": 4 for i in (1, 2, 3)} | {"block_sparse_moe.gate": 1}),
        ("qwen3 moe", {f"mlp.experts.{x}_proj": 4 for x in ("gate", "up", "down")} | {"mlp.gate": 1}),
    ],
)
def test_experts_share_a_module(name: str, experts: dict[str, int], tmp_path: Path) -> None:
    assert modules(planned(EXPERTS[name], tmp_path)) == ATTENTION | experts


def test_fused_experts_of_gpt_oss_are_measured_slice_by_slice(tmp_path: Path) -> None:
    plan = planned(EXPERTS["gpt-oss"], tmp_path)
    found = modules(plan)
    assert {"mlp.experts.gate_up_proj": 4, "mlp.experts.down_proj": 4, "mlp.router": 1}.items() <= found.items()
    assert "model.layers.1.mlp.experts.down_proj[3]" in {pair.name for pair in plan.pairs}
    biases = {x.name for x in plan.summed if x.reason.startswith("among the biases")}
    assert "model.layers.0.mlp.experts.gate_up_proj_bias" in biases


def test_stacks_of_granite_are_experts_and_stacks_of_wav2vec2_are_a_convolution(tmp_path: Path) -> None:
    granite = architecture("granitemoe", **SIZES, num_local_experts=4, num_experts_per_tok=2)
    found = modules(planned(granite, tmp_path / "granite"))
    assert {"block_sparse_moe.input_linear": 4, "block_sparse_moe.output_linear": 4}.items() <= found.items()

    config = {"conv_dim": [32, 32], "conv_kernel": [3, 3], "conv_stride": [2, 2], "num_feat_extract_layers": 2}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    model = AutoModel.from_config(AutoConfig.for_model("wav2vec2", **config, **sizes, **positions))
    for name in ("one", "other"):
        model.save_pretrained(tmp_path / name)
    with open_checkpoint(tmp_path / "one") as base, open_checkpoint(tmp_path / "other") as finetune:
        plan = pair_checkpoints(base, finetune)
    assert not any("conv" in pair.module for pair in plan.pairs)
