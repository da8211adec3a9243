"""The heads of a model's attention, and the orders in which families store the rows of q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Heads:
    """number: of queries; groups: of keys and values; size: rows of one head."""

    number: int
    groups: int
    size: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """As a config.json states them; None where it does not."""
        text = config.get("text_config")
        config = {**config, **text} if isinstance(text, dict) else config
        number = _count(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
        hidden = _count(config, "hidden_size", "n_embd", "d_model", "dim")
        size = _count(config, "head_dim", "kv_channels") or (hidden // number if number and hidden else None)
        if not number or not size:
            return None
        attention = config.get("attn_config")
        kv = attention if isinstance(attention, dict) else {}
        groups = _count(config, "num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv")
        groups = groups or _count(kv, "kv_n_heads")
        if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
            groups = 1
        if config.get("multi_query_attention") is True:  # ChatGLM
            groups = _count(config, "multi_query_group_num")
        return cls(number, groups or number, size)

    @property
    def rows(self) -> tuple[int, int, int]:
        """Rows of q, k and v."""
        return self.number * self.size, self.groups * self.size, self.groups * self.size


def _count(config: Mapping[str, Any], *names: str) -> int | None:
    return next((value for name in names if isinstance(value := config.get(name), int) and value > 0), None)


_GROUPED = frozenset({"gpt_neox", "bloom", "persimmon", "fuyu", "internlm2"})
_BLOCKS_OF_CODEGEN = 4


def fused_order(leaf: str, config: Mapping[str, Any], rows: tuple[int, int, int]) -> Tensor | None:
    """For each row of a fused tensor, its row in [q; k; v], as this model type fuses them; None if not known.

    concatenated         q, k, v (Phi-3, Baichuan, MPT, DBRX, ModernBERT, ViT, Qwen, ChatGLM with multi-query attention)
    grouped              for each group of queries: its q heads, its k head, its v head (InternLM2, Falcon; GPT-NeoX and
                         BLOOM with one head in a group)
    blocks of q, v, k    CodeGen, for four devices
    Read in the models' code of transformers 5.24; InternLM2 and ChatGLM in the code of their repositories.
    """
    kind, heads = str(config.get("model_type")), Heads.of(config)
    if heads is not None and heads.rows != rows:
        return None
    if kind == "codegen":
        blocks = torch.arange(sum(rows)).view(3, _BLOCKS_OF_CODEGEN, -1)[[0, 2, 1]]
        return blocks.transpose(0, 1).reshape(-1)
    if leaf in ("query_key_value", "wqkv") or kind in _GROUPED or kind == "gpt_bigcode":
        return _order_by_family(kind, config, heads)
    return torch.arange(sum(rows))


def _order_by_family(kind: str, config: Mapping[str, Any], heads: Heads | None) -> Tensor | None:
    """The order of tensors whose name does not tell it."""
    if heads is None:
        return None
    if kind in ("falcon", "RefinedWeb", "RefinedWebModel", "gpt_bigcode"):
        if "multi_query" not in config and "n_head_kv" not in config:
            return None
        is_concatenated = heads.groups == 1
    elif kind == "chatglm":
        is_concatenated = config.get("multi_query_attention") is True
    elif kind in _GROUPED:
        is_concatenated = False
    else:
        return None
    return torch.arange(sum(heads.rows)) if is_concatenated else grouped_order(heads)


@lru_cache(maxsize=16)
def grouped_order(heads: Heads) -> Tensor:
    """Row j of the tensor that is fused group by group is row order[j] of [q; k; v]."""
    parts = torch.split(torch.arange(sum(heads.rows)), list(heads.rows))
    return torch.cat([part.view(heads.groups, -1) for part in parts], dim=1).view(-1)


@lru_cache(maxsize=16)
def rotary_order(heads: int, size: int) -> Tensor:
    """For each row of q (or k) in transformers, its row in Meta's files: pairs (i, i + size / 2) are neighbours there.

    As transformers' convert_llama_weights_to_hf: view(heads, size / 2, 2).transpose(1, 2).
    """
    return torch.arange(heads * size).view(heads, size // 2, 2).transpose(1, 2).reshape(-1)


def inverse(order: Tensor) -> Tensor:
    """The order that undoes another."""
    return torch.argsort(order)
