"""A finetune whose projections are fused, split, reordered or named otherwise is compared in the base's layout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from files import Tensors, numbers, pairing, read, save
from torch import Tensor

from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.results import Outcome

N, G, D, H = 8, 2, 4, 32
"""Heads of queries, of keys and values, rows of a head, width."""

Split = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def concatenated(groups: int) -> Split:
    def split(fused: Tensor) -> tuple[Tensor, ...]:
        return fused.split([N * D, groups * D, groups * D])

    return split  # type: ignore[return-value]


def per_head(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As GPT-NeoX, BLOOM and Falcon with one key for each query: (heads, 3, rows of a head)."""
    heads = fused.view(N, 3, D, *fused.shape[1:])
    return heads[:, 0].flatten(0, 1), heads[:, 1].flatten(0, 1), heads[:, 2].flatten(0, 1)


def per_group(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As InternLM2 and the newer Falcon: (groups, queries of a group + 2, rows of a head)."""
    groups = fused.view(G, N // G + 2, D, *fused.shape[1:])
    return groups[:, :-2].flatten(0, 2), groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)


def of_codegen(fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    blocks = fused.view(4, 3, -1, *fused.shape[1:])
    return blocks[:, 0].flatten(0, 1), blocks[:, 2].flatten(0, 1), blocks[:, 1].flatten(0, 1)


HEADS = {"num_attention_heads": N, "hidden_size": H}
GROUPS = HEADS | {"num_key_value_heads": G}
QKV = "model.layers.{}.self_attn."
FAMILIES: Mapping[str, tuple[str, dict[str, Any], int, Split]] = {
    "phi3": ("qkv_proj", {"model_type": "phi3", **GROUPS}, G, concatenated(G)),
    "baichuan": ("W_pack", {"model_type": "baichuan", **HEADS}, N, concatenated(N)),
    "mpt": ("Wqkv", {"model_type": "mpt", "n_heads": N, "d_model": H}, N, concatenated(N)),
    "dbrx": (
        "Wqkv",
        {"model_type": "dbrx", "n_heads": N, "d_model": H, "attn_config": {"kv_n_heads": G}},
        G,
        concatenated(G),
    ),
    "gpt_neox": ("query_key_value", {"model_type": "gpt_neox", **HEADS}, N, per_head),
    "bloom": ("query_key_value", {"model_type": "bloom", "n_head": N, "hidden_size": H}, N, per_head),
    "persimmon": ("query_key_value", {"model_type": "persimmon", **HEADS}, N, per_head),
    "falcon 7b": ("query_key_value", {"model_type": "falcon", "multi_query": True, **HEADS}, 1, concatenated(1)),
    "falcon 40b": (
        "query_key_value",
        {"model_type": "falcon", "multi_query": True, "new_decoder_architecture": True, **HEADS, "num_kv_heads": G},
        G,
        per_group,
    ),
    "falcon rw": ("query_key_value", {"model_type": "falcon", "multi_query": False, **HEADS}, N, per_head),
    "internlm2": ("wqkv", {"model_type": "internlm2", **GROUPS}, G, per_group),
    "codegen": ("qkv_proj", {"model_type": "codegen", "n_head": N, "n_embd": H}, N, of_codegen),
    "starcoder": (
        "c_attn",
        {"model_type": "gpt_bigcode", "multi_query": True, "n_head": N, "n_embd": H},
        1,
        concatenated(1),
    ),
    "bigcode mha": (
        "c_attn",
        {"model_type": "gpt_bigcode", "multi_query": False, "n_head": N, "n_embd": H},
        N,
        per_head,
    ),
    "no config": ("qkv", {}, N, concatenated(N)),
}


def two_forms(leaf: str, groups: int, split: Split, seed: int) -> tuple[Tensors, Tensors]:
    """The same numbers fused and split."""
    fused: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    for layer in (0, 1):
        at = QKV.format(layer)
        other = {f"{at}o_proj.weight": numbers(H, H, seed=seed + layer)}
        rows = (N + 2 * groups) * D
        whole = {"weight": numbers(rows, H, seed=seed + 7 + layer), "bias": numbers(rows, seed=seed + 9 + layer)}
        fused |= other | {f"{at}{leaf}.{end}": tensor for end, tensor in whole.items()}
        parts |= {name: tensor.clone() for name, tensor in other.items()}
        for end, tensor in whole.items():
            parts |= {f"{at}{x}_proj.{end}": each.clone() for x, each in zip("qkv", split(tensor), strict=True)}
    return fused, parts


def compared(base: Path, finetune: Path) -> tuple[dict[str, Tensor], set[Outcome]]:
    """The finetune's tensors as they are compared with the base's, by the base's names."""
    with open_checkpoint(base) as one, open_checkpoint(finetune) as other:
        plan = pair_checkpoints(one, other)
        both = (*plan.pairs, *plan.summed)
        return {x.base.tensor: read(x)[1] for x in both}, {x.outcome for x in plan.skipped}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("base_is_fused", [True, False])
def test_fused_and_split_projections_are_compared_as_the_base_has_them(
    tmp_path: Path, family: str, base_is_fused: bool
) -> None:
    leaf, config, groups, split = FAMILIES[family]
    base, finetune = two_forms(leaf, groups, split, 0), two_forms(leaf, groups, split, 50)
    ours, as_the_base = (base[0], finetune[0]) if base_is_fused else (base[1], finetune[1])
    theirs = finetune[1] if base_is_fused else finetune[0]
    llama = {"model_type": "llama", **HEADS, "num_key_value_heads": groups} if config else {}
    configs = (config, llama) if base_is_fused else (llama, config)

    seen, skipped = compared(
        save(tmp_path / "base", ours, config=configs[0]), save(tmp_path / "finetune", theirs, config=configs[1])
    )

    assert seen.keys() == as_the_base.keys()
    assert not skipped
    assert all(torch.equal(seen[name].view(-1), tensor.reshape(-1)) for name, tensor in as_the_base.items())


def test_an_order_that_is_not_certain_is_not_guessed(tmp_path: Path) -> None:
    fused, parts = two_forms("query_key_value", N, per_head, 0)
    plan = pairing(save(tmp_path / "a", fused, config={"model_type": "unknown"}), save(tmp_path / "b", parts))

    assert {pair.module for pair in plan.pairs} == {"self_attn.o_proj"}
    assert plan.unpaired().share > 0.7
    assert any("the order of its rows is not certain" in note for note in plan.notes)


def test_configurations_that_disagree_with_the_shapes_pair_nothing(tmp_path: Path) -> None:
    fused, parts = two_forms("qkv_proj", G, concatenated(G), 0)
    config = {"model_type": "phi3", **GROUPS, "num_key_value_heads": N}
    assert pairing(save(tmp_path / "a", fused, config=config), save(tmp_path / "b", parts)).unpaired().matrices == 8


def test_gate_and_up_are_split_in_this_order(tmp_path: Path) -> None:
    o = {f"model.layers.{i}.self_attn.o_proj.weight": numbers(H, H) for i in (0, 1)}
    whole = {f"model.layers.{i}.mlp.gate_up_proj.weight": numbers(48, H, seed=i) for i in (0, 1)}
    halves = {
        name.replace("gate_up", part): half.clone()
        for name, tensor in whole.items()
        for part, half in zip(("gate", "up"), tensor.chunk(2), strict=True)
    }
    fused, split = save(tmp_path / "fused", o | whole), save(tmp_path / "split", o | halves)

    for base, finetune, expected in ((fused, split, whole), (split, fused, halves)):
        seen, _ = compared(base, finetune)
        assert all(torch.equal(seen[name], tensor) for name, tensor in expected.items())


def permuted_for_meta(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `permute` in transformers' convert_llama_weights_to_hf: pairs of rows become neighbours."""
    return weight.view(heads, 2, weight.shape[0] // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def decoder(seed: int) -> tuple[Tensors, Tensors]:
    """In transformers' layout, and as Meta and Mistral store it."""
    ours: dict[str, Tensor] = {
        "model.embed_tokens.weight": numbers(40, H, seed=seed),
        "lm_head.weight": numbers(40, H, seed=seed + 1),
        "model.norm.weight": numbers(H),
    }
    theirs = {
        "tok_embeddings.weight": ours["model.embed_tokens.weight"],
        "output.weight": ours["lm_head.weight"],
        "norm.weight": ours["model.norm.weight"],
    }
    for i in (0, 1):
        at, there = f"model.layers.{i}.", f"layers.{i}."
        q, k, v, o = (numbers(rows, H, seed=seed + i + rows) for rows in (N * D, G * D, G * D, N * D))
        ours |= {f"{at}self_attn.{x}_proj.weight": w for x, w in zip("qkvo", (q, k, v, o), strict=True)}
        theirs |= {f"{there}attention.w{x}.weight": w for x, w in zip("vo", (v, o), strict=True)}
        theirs |= {
            f"{there}attention.wq.weight": permuted_for_meta(q, N),
            f"{there}attention.wk.weight": permuted_for_meta(k, G),
        }
        for part, name in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            ours[f"{at}mlp.{part}_proj.weight"] = theirs[f"{there}feed_forward.{name}.weight"] = numbers(
                48, 48, seed=seed + i
            )
        ours[f"{at}input_layernorm.weight"] = theirs[f"{there}attention_norm.weight"] = numbers(H, seed=i)
        ours[f"{at}post_attention_layernorm.weight"] = theirs[f"{there}ffn_norm.weight"] = numbers(H, seed=i + 3)
    return ours, {name: tensor.clone() for name, tensor in theirs.items()}


@pytest.mark.parametrize("base_is_native", [True, False])
def test_files_of_meta_and_mistral_are_paired_row_by_row(tmp_path: Path, base_is_native: bool) -> None:
    config = {"model_type": "mistral", **GROUPS}
    forms, finetuned = decoder(0), decoder(50)
    base = save(tmp_path / "base", forms[base_is_native], config=None if base_is_native else config)
    finetune = save(tmp_path / "ft", finetuned[not base_is_native], config=config if base_is_native else None)
    seen, skipped = compared(base, finetune)

    assert not skipped
    assert all(torch.equal(seen[n].view(-1), t.reshape(-1)) for n, t in finetuned[base_is_native].items())


def test_without_heads_the_rows_of_meta_are_not_guessed(tmp_path: Path) -> None:
    plan = pairing(save(tmp_path / "a", decoder(0)[0]), save(tmp_path / "b", decoder(50)[1]))

    assert not any("q_proj" in pair.name or "k_proj" in pair.name for pair in plan.pairs)
    assert plan.unpaired().matrices == 8
    assert any("Meta's rotary embedding" in note for note in plan.notes)


def test_names_of_qwen_are_those_of_llama(tmp_path: Path) -> None:
    """Qwen's w1 is what Llama calls up, and its w2 is the gate."""
    inside = {
        "attn.c_proj": "self_attn.o_proj",
        "mlp.w1": "mlp.up_proj",
        "mlp.w2": "mlp.gate_proj",
        "mlp.c_proj": "mlp.down_proj",
    }
    qwen = {
        f"transformer.h.{i}.{name}.weight": numbers(H, H, seed=i + j) for i in (0, 1) for j, name in enumerate(inside)
    }
    fused = numbers(3 * N * D, H)
    llama = {
        f"model.layers.{i}.{new}.weight": qwen[f"transformer.h.{i}.{old}.weight"].clone()
        for i in (0, 1)
        for old, new in inside.items()
    }
    for i in (0, 1):
        qwen[f"transformer.h.{i}.attn.c_attn.weight"] = fused.clone()
        llama |= {
            f"model.layers.{i}.self_attn.{x}_proj.weight": part.clone()
            for x, part in zip("qkv", fused.chunk(3), strict=True)
        }
    configs = {"model_type": "qwen", **HEADS}, {"model_type": "llama", **HEADS}
    seen, skipped = compared(
        save(tmp_path / "a", llama, config=configs[1]), save(tmp_path / "b", qwen, config=configs[0])
    )

    assert not skipped
    assert all(torch.equal(seen[name], tensor) for name, tensor in llama.items())
