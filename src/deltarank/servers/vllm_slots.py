"""The memory of vLLM's LoRA slots, from the shapes of the base's tensors.

vLLM allocates `--max-loras` slots before it loads an adapter, each for an adapter of rank `--max-lora-rank` on every
module that it can adapt, whichever modules the adapters have (vllm/lora/model_manager.py `_create_lora_modules`).
Without `--lora-target-modules`, a module of `in` inputs and `out` outputs takes on one GPU

    slots x rank x (in + out) x bytes of a number

(vllm/lora/layers, `create_lora_weights`: lora_a_stacked (slots, 1, rank, in), lora_b_stacked (slots, 1, out, rank)).
Read in 0.32.0, and compared with its tensors by benchmarks/servers/vllm_slots.py:

- q, k and v in one module, gate and up in one module: a pair A, B for each of them, as for separate matrices
  (column_parallel_linear.py). A checkpoint that stores them as one matrix (Phi-3) has one pair.
- Experts: a pair for each matrix of each expert (fused_moe.py). Routers are linear layers, and have a pair.
- The embedding, and the head, tied or not: a pair each in the model classes whose `embedding_modules` names them
  (vocab_parallel_embedding.py, logits_processor.py).
- Parts that read images or sound: none, unless `--enable-tower-connector-lora` is given.
- Tensor parallelism over N GPUs, without `--fully-sharded-loras`, divides B of q, k, v, gate and up, and A of o and
  down: in + out / N, and in / N + out, on each GPU (column_parallel_linear.py, row_parallel_linear.py). Of keys and
  values, a GPU has at least one head. The embedding, the head and routers are whole on each; here, so are modules
  that have other names.
- A number takes as many bytes as one of the model's dtype (`--lora-dtype auto`): 2 for bfloat16 and float16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from deltarank.servers.model_families import model_types
from deltarank.servers.rules import get_server
from deltarank.tensor_names import EXPERT, LM_HEAD, ROUTER, kind_of_tensor

SLOT_NUMBER_BYTES = 2

_FUSED_GATE_UP = frozenset({"gpt_oss", "interns1_pro", "qwen3_5_moe", "qwen3_omni_moe", "qwen3_vl_moe"})
"""The model types with one pair for gate and up of an expert: `is_3d_moe_weight` in vllm/model_executor/models."""

_NO_HEAD_BUT_EMBEDDING = frozenset({"cohere", "cohere2"})

_EMBEDDING_MODULES = frozenset({"embed_tokens", "wte"})

_TOWER = re.compile(r"(?:vision|visual|vit|image|audio|speech|multi_modal|mm)(?:_\w+)?|\w*projector")


_DIVIDED_OUTPUTS = re.compile(r"(?:q|k|v|qkv|gate|up|gate_up)_proj|w1|w3")
_DIVIDED_INPUTS = re.compile(r"(?:o|down)_proj|w2")
_KEYS_AND_VALUES = re.compile(r"[kv]_proj")


def slot_numbers(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any], *, gpus: int = 1) -> int:
    """The numbers in one slot of rank 1 on each GPU: the sum of in + out over the modules that vLLM can adapt.

    A slot of rank r has r times as many.

    Args:
        shapes: of the base's tensors, by name.
        config: the base's config.json; {} where there is none.
        gpus: `--tensor-parallel-size`.
    """
    linear = sum(_numbers(name, shape, config, gpus) for name, shape in shapes.items())
    return linear + _vocabulary_numbers(shapes, config)


def slot_bytes(numbers: int, rank: int, slots: int) -> int:
    """The bytes of `slots` slots of this rank, if a slot of rank 1 has this many numbers."""
    return numbers * rank * slots * SLOT_NUMBER_BYTES


def _numbers(name: str, shape: Sequence[int], config: Mapping[str, Any], gpus: int) -> int:
    if len(shape) < 2 or _is_of_tower(name):
        return 0
    kind = kind_of_tensor(name)
    if kind == EXPERT and len(shape) == 3:
        pairs = 2 if "gate_up" in name and not _FUSED_GATE_UP & model_types(config) else 1
        inputs = _inputs(name, shape, config)
        return shape[0] * _of_one_gpu(name, inputs, shape[1] + shape[2] - inputs, config, gpus, pairs=pairs)
    if len(shape) != 2 or kind not in (None, EXPERT, ROUTER):
        return 0
    return _of_one_gpu(name, shape[1], shape[0], config, gpus)


def _of_one_gpu(name: str, inputs: int, outputs: int, config: Mapping[str, Any], gpus: int, *, pairs: int = 1) -> int:
    """A of `pairs` pairs and B of all of them."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    if _DIVIDED_INPUTS.fullmatch(module):
        inputs = -(-inputs // gpus)
    elif _DIVIDED_OUTPUTS.fullmatch(module):
        heads = config.get("num_key_value_heads")
        parts = min(gpus, heads) if _KEYS_AND_VALUES.fullmatch(module) and isinstance(heads, int) and heads else gpus
        outputs = -(-outputs // parts)
    return pairs * inputs + outputs


def _inputs(name: str, shape: Sequence[int], config: Mapping[str, Any]) -> int:
    """The inputs of experts in one tensor, (experts, outputs, inputs) or (experts, inputs, outputs)."""
    hidden, (first, last) = config.get("hidden_size"), shape[1:]
    is_turned = last == hidden != first if "down" in name else first == hidden != last
    return first if is_turned else last


def _vocabulary_numbers(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> int:
    """Of the embedding and the head, where vLLM's class of the model can adapt them. A tied head counts, too."""
    embedding = sum(sum(shape) for name, shape in shapes.items() if _is_embedding(name, shape))
    head = sum(sum(shape) for name, shape in shapes.items() if kind_of_tensor(name) == LM_HEAD and len(shape) == 2)
    if get_server("vllm").refuses_head(config):
        return embedding if _NO_HEAD_BUT_EMBEDDING & model_types(config) else 0
    return embedding + (head or embedding)


def _is_embedding(name: str, shape: Sequence[int]) -> bool:
    named = name.split(".")[-2:-1]
    return bool(named) and named[0] in _EMBEDDING_MODULES and len(shape) == 2 and not _is_of_tower(name)


def _is_of_tower(name: str) -> bool:
    return any(_TOWER.fullmatch(part) for part in name.split(".")[:-1])
