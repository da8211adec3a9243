"""Tiny models of real architectures, finetuned for real for a few steps, as transformers saves them."""

import functools
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 48
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {**SIZES, "head_dim": 8}
FEW_EXPERTS = {**HEADS, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT_OSS = {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2}
QWEN3_MOE = {**FEW_EXPERTS, "num_experts": 4, "decoder_sparse_step": 1}
_SHARED_EXPERT = {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_GPT2 = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}

Make = Callable[[], PreTrainedModel]


def architecture(model_type: str, **config: Any) -> Make:
    """Makes models of this type, with random weights."""
    return lambda: AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))


DENSE: Mapping[str, Make] = {
    "llama": architecture("llama", **SIZES),
    "tied llama": architecture("llama", **SIZES, tie_word_embeddings=True),
    "qwen2": architecture("qwen2", **SIZES),
    "mistral": architecture("mistral", **HEADS),
    "gemma": architecture("gemma", **HEADS),
    "phi3": architecture("phi3", **SIZES),
    "gpt2": architecture("gpt2", **_GPT2, bos_token_id=1, eos_token_id=2),
}
EXPERTS: Mapping[str, Make] = {
    "mixtral": architecture("mixtral", **HEADS, num_local_experts=4),
    "qwen3 moe": architecture("qwen3_moe", **QWEN3_MOE),
    "gpt-oss": architecture("gpt_oss", **GPT_OSS),
}
MORE_EXPERTS: Mapping[str, Make] = {
    "olmoe": architecture("olmoe", **SIZES, num_experts=4, num_experts_per_tok=2),
    # A shared expert, whose modules have the names of an expert's.
    "qwen2 moe": architecture(
        "qwen2_moe", **FEW_EXPERTS, num_experts=4, shared_expert_intermediate_size=24, decoder_sparse_step=1
    ),
    # Beside the router's weight lies a correction that is no parameter, and that PEFT wants all the same.
    "glm4 moe": architecture("glm4_moe", **FEW_EXPERTS | _SHARED_EXPERT),
    "deepseek v3": architecture(
        "deepseek_v3",
        **FEW_EXPERTS | _SHARED_EXPERT | _LATENT | {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1},
    ),
}
"""Models that few tests need."""


def tokens(rows: int = 4, seed: int = 3) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, 12), generator=torch.Generator().manual_seed(seed))


def served(folder: Path, adapter: Path) -> PeftModel:
    """As PEFT loads it; its warnings of missing and unexpected keys are errors here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # between PEFT and transformers
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)  # its own, experts
        warnings.filterwarnings("ignore", "`lora_bias=True` was passed but")
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), adapter)


def logits(folder: Path, adapter: Path | None = None, *, merged: bool = False) -> torch.Tensor:
    """Those of a saved model, with an adapter as PEFT loads it, beside the weights or merged into them."""
    if adapter is None:
        return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    model: Any = served(folder, adapter)
    return logits_of((model.merge_and_unload() if merged else model).eval())


def logits_of(model: Any) -> torch.Tensor:
    """The model's logits on `tokens(seed=99)`."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=tokens(seed=99)).logits
    return found


def write_pair(
    make: Make, folder: Path, *, dtype: torch.dtype = torch.float32, steps: int = 3, shard_size: str = "5GB"
) -> tuple[Path, Path]:
    """A base of random weights, and a finetune in shards of this size, in which a few steps of AdamW moved each weight
    that learns. Trained once in a process, and written as often as it is wanted."""
    for name, content in _files_of_pair(make, dtype, steps, shard_size).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    torch.manual_seed(0)  # what is drawn next does not depend on when the pair was trained
    return folder / "base", folder / "finetune"


@functools.cache
def _files_of_pair(make: Make, dtype: torch.dtype, steps: int, shard_size: str) -> Mapping[str, bytes]:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.to(dtype).save_pretrained(folder / "base")
        model.float().train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(steps):
            batch = tokens(seed=step)
            model(input_ids=batch, labels=batch).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        model.to(dtype).save_pretrained(folder / "finetune", max_shard_size=shard_size)
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.glob("*/*")}


def best_approximation(delta: np.ndarray, rank: int) -> np.ndarray:
    """The rank-r delta, by an SVD in float64: what the tool never builds."""
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    return np.asarray((left[:, :rank] * values[:rank]) @ right[:rank])


def with_rank(base: Path, finetune: Path, names: list[str], rank: int, folder: Path) -> Path:
    """The oracle: base + D_r of these matrices ("x[3]": of one expert), as a checkpoint."""
    weights, tuned = (load_file(each / "model.safetensors") for each in (base, finetune))
    for name in names:
        tensor, _, number = name.rstrip("]").partition("[")
        place = (int(number),) if number else ()
        before, after = weights[tensor][place].double().numpy(), tuned[tensor][place].double().numpy()
        weights[tensor][place] = torch.from_numpy(before + best_approximation(after - before, rank)).float()
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder


def fused(folder: Path, to: Path) -> Path:
    """The same model under the names and shapes of transformers' own modules: experts in one tensor."""
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert any(name.endswith("experts.gate_up_proj") for name in state)
    to.mkdir()
    save_file({key: tensor.clone() for key, tensor in state.items()}, to / "model.safetensors", {"format": "pt"})
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    return to
