"""The memory of vLLM's LoRA slots from shapes; benchmarks/servers/vllm_slots.py compares it with the real vLLM."""

from collections.abc import Mapping

import pytest

from deltarank.servers import slot_bytes, slot_numbers

Shapes = Mapping[str, tuple[int, ...]]

LLAMA: Shapes = {
    "model.embed_tokens.weight": (512, 128),
    "lm_head.weight": (512, 128),
    "model.norm.weight": (128,),
    "model.layers.0.input_layernorm.weight": (128,),
    "model.layers.0.self_attn.q_proj.weight": (128, 128),
    "model.layers.0.self_attn.k_proj.weight": (64, 128),
    "model.layers.0.self_attn.v_proj.weight": (64, 128),
    "model.layers.0.self_attn.o_proj.weight": (128, 128),
    "model.layers.0.mlp.gate_proj.weight": (256, 128),
    "model.layers.0.mlp.up_proj.weight": (256, 128),
    "model.layers.0.mlp.down_proj.weight": (128, 256),
}
LINEAR = 256 + 192 + 192 + 256 + 384 + 384 + 384
EXPERTS, HIDDEN, INNER = 8, 96, 160


def test_linear_layers_embedding_and_head_have_a_pair_each() -> None:
    assert slot_numbers(LLAMA, {"model_type": "llama"}) == LINEAR + 640 + 640


def test_a_tied_head_has_a_pair_too() -> None:
    tied = {name: shape for name, shape in LLAMA.items() if name != "lm_head.weight"}
    assert slot_numbers(tied, {"model_type": "llama"}) == slot_numbers(LLAMA, {"model_type": "llama"})


@pytest.mark.parametrize(("kind", "more"), [("mistral", 0), ("gemma2", 0), ("cohere", 640), ("qwen3", 1280)])
def test_vllm_has_no_pair_for_the_embedding_of_some_classes(kind: str, more: int) -> None:
    assert slot_numbers(LLAMA, {"model_type": kind}) == LINEAR + more


def test_fused_projections_have_one_pair() -> None:
    fused = {
        "model.layers.0.self_attn.qkv_proj.weight": (256, 128),
        "model.layers.0.mlp.gate_up_proj.weight": (512, 128),
    }
    assert slot_numbers(fused, {"model_type": "phi3"}) == 384 + 640


def test_what_reads_images_has_none() -> None:
    images = {
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight": (64, 64),
        "multi_modal_projector.linear_1.weight": (128, 64),
        "visual.blocks.0.attn.qkv.weight": (64, 64),
    }
    assert slot_numbers({**LLAMA, **images}, {"model_type": "llama"}) == slot_numbers(LLAMA, {"model_type": "llama"})


def test_each_expert_has_pairs() -> None:
    parts = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    each = {f"x.experts.{i}.{part}.weight": shape for i in range(EXPERTS) for part, shape in parts.items()}
    fused: Shapes = {
        "x.experts.gate_up_proj": (EXPERTS, 2 * INNER, HIDDEN),
        "x.experts.down_proj": (EXPERTS, HIDDEN, INNER),
    }
    config = {"model_type": "mixtral", "hidden_size": HIDDEN}
    apart = EXPERTS * 3 * (HIDDEN + INNER)

    assert slot_numbers(each, config) == apart
    assert slot_numbers(fused, config) == apart
    turned = {"x.experts.gate_up_proj": (EXPERTS, HIDDEN, 2 * INNER), "x.experts.down_proj": (EXPERTS, INNER, HIDDEN)}
    assert slot_numbers(turned, config) == apart
    assert slot_numbers(turned, {**config, "model_type": "gpt_oss"}) == apart - EXPERTS * HIDDEN
    assert slot_numbers({"x.mlp.gate.weight": (EXPERTS, HIDDEN)}, config) == EXPERTS + HIDDEN


def test_bytes_grow_with_rank_and_slots() -> None:
    assert slot_bytes(1000, 64, 3) == 1000 * 64 * 3 * 2
    found = [slot_bytes(1000, rank, slots) for rank in (8, 16) for slots in (1, 2)]
    assert found == sorted(found)
    assert slot_bytes(1000, 64, 0) == 0


def test_two_gpus_share_one_side_of_each_linear_layer() -> None:
    """The numbers that vLLM 0.32.0 allocates on each of two; see benchmarks/servers/vllm_slots.py."""
    config = {"model_type": "llama", "num_key_value_heads": 2}
    inputs, outputs = 128 + 2 * 128 + 2 * 128, 64 + 2 * 32 + 2 * 128
    rows = (64 + 128) + (128 + 128)

    assert slot_numbers(LLAMA, config, gpus=2) == inputs + outputs + rows + 640 + 640
    assert slot_numbers(LLAMA, config, gpus=1) == slot_numbers(LLAMA, config)


def test_each_gpu_has_a_head_of_keys_and_values() -> None:
    one_head = {"model_type": "llama", "num_key_value_heads": 1}
    keys: Shapes = {"model.layers.0.self_attn.k_proj.weight": (32, 128)}

    assert slot_numbers(keys, one_head, gpus=4) == 128 + 32
    assert slot_numbers(keys, {**one_head, "num_key_value_heads": 2}, gpus=4) == 128 + 16


def test_routers_are_whole_on_each_gpu_and_experts_are_divided() -> None:
    config = {"model_type": "mixtral", "hidden_size": HIDDEN}
    experts: Shapes = {
        "x.experts.gate_up_proj": (EXPERTS, 2 * INNER, HIDDEN),
        "x.experts.down_proj": (EXPERTS, HIDDEN, INNER),
    }
    half = EXPERTS * (2 * HIDDEN + INNER + INNER // 2 + HIDDEN)

    assert slot_numbers(experts, config, gpus=2) == half
    assert slot_numbers({"x.mlp.gate.weight": (EXPERTS, HIDDEN)}, config, gpus=2) == EXPERTS + HIDDEN
