"""The rules of servers: dated, with sources, and in words that the code knows."""

import re

import pytest

from deltarank.errors import UsageError
from deltarank.servers import Handling, get_server, is_transposed, rules_date, server_names
from deltarank.tensor_names import kind_in_words, kind_of_tensor
from refusals import refused


def test_the_rules_are_dated() -> None:
    assert re.fullmatch(r"20\d\d-\d\d", rules_date())


@pytest.mark.parametrize("name", server_names())
def test_each_server_has_sources_and_valid_rules(name: str) -> None:
    rules = get_server(name)

    assert rules.sources
    assert rules.scale in {"config", "tensor", "patterns"}
    for word in (rules.patterns, rules.rslora, rules.bias, rules.modules_to_save):
        assert word in {"honoured", "ignored", "refused"}
    assert rules.coverage in {"any", "every layer"}
    assert bool(rules.evidence.run or rules.evidence.read) != rules.is_portable
    assert set(rules.carries.values()) <= {"whole", "factors", "on request"}
    assert list(rules.candidate_ranks) == sorted(rules.candidate_ranks)


def test_every_server_accepts_the_ranks_of_a_portable_adapter() -> None:
    for rank in get_server("portable").candidate_ranks:
        for name in server_names():
            get_server(name).check_rank(rank)


@pytest.mark.parametrize(("rank", "slot"), [(1, 1), (2, 8), (12, 16), (24, 32), (63, 64), (64, 64), (321, 512)])
def test_an_adapter_of_any_rank_takes_the_next_larger_slot_of_vllm(rank: int, slot: int) -> None:
    vllm = get_server("vllm")
    vllm.check_rank(rank)

    assert vllm.slot_for(rank) == slot
    assert get_server("llama.cpp").slot_for(rank) == rank


def test_a_rank_above_the_largest_slot_is_refused() -> None:
    with refused("illegal-rank", UsageError, match="the highest is 512") as caught:
        get_server("vllm").check_rank(513)

    assert "--rank 512" in caught.value.cure


def test_each_server_says_how_its_rules_are_known() -> None:
    found = {name: get_server(name).evidence.sentence for name in server_names()}

    assert "vLLM 0.32.0 were found by running it (2026-11-29)" in found["vllm"]
    assert "vLLM up to 0.31 0.31.0" not in found["vllm-0.31"]
    assert "only read from its source" in found["sglang"]
    assert "it was not run" in found["lorax"]


def test_an_older_version_differs_in_its_own_rules_alone() -> None:
    older, newest = get_server("vllm-0.31"), get_server("vllm")

    assert (newest.patterns, older.patterns) == (Handling.HONOURED, Handling.IGNORED)
    assert (newest.bias, newest.no_lora) == (older.bias, older.no_lora)


def test_a_portable_adapter_has_the_limits_of_all_servers() -> None:
    portable = get_server("portable")
    for name in server_names():
        other = get_server(name)
        if other.is_peft:
            continue
        assert other.no_lora <= portable.no_lora
        assert other.no_head <= portable.no_head
        assert set(other.groups) <= set(portable.groups)
        assert other.modules is None or portable.modules <= other.modules


def test_modules_that_a_server_fuses_come_together() -> None:
    path = "model.layers.3.self_attn"

    assert get_server("sglang").partners(f"{path}.q_proj") == {f"{path}.k_proj", f"{path}.v_proj"}
    assert get_server("portable").partners("q_proj") == {"k_proj", "v_proj"}
    assert get_server("vllm").partners(f"{path}.q_proj") == set()


def test_an_unknown_server_is_refused() -> None:
    with refused("bad-server", UsageError, match="'tgi'"):
        get_server("tgi")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.input_layernorm.weight", "norm"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("transformer.h.0.ln_1.bias", "norm"),
        ("transformer.ln_f.weight", "norm"),
        ("model.layers.0.self_attn.q_proj.bias", "bias"),
        ("lm_head.weight", "lm_head"),
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("transformer.wpe.weight", "position"),
        ("model.layers.0.block_sparse_moe.gate.weight", "router"),
        ("model.layers.0.mlp.router.bias", "router"),
        ("model.layers.0.mlp.gate.e_score_correction_bias", "router"),
        ("model.layers.0.mlp.experts.3.up_proj.weight", "expert"),
        ("model.layers.0.mlp.gate_proj.weight", None),
        ("model.layers.0.mlp.shared_experts.gate_proj.weight", None),
        ("transformer.h.0.attn.c_attn.weight", None),
    ],
)
def test_kinds_of_tensors_follow_from_their_names(name: str, kind: str | None) -> None:
    assert kind_of_tensor(name) == kind


def test_kinds_have_words() -> None:
    assert kind_in_words("norm") == "norms"
    assert kind_in_words("added tokens") == "added tokens"


def test_a_conv1d_is_recognised_by_model_and_name() -> None:
    assert is_transposed("transformer.h.0.attn.c_attn.weight", {"model_type": "gpt2"})
    assert not is_transposed("transformer.h.0.attn.c_attn.weight", {"model_type": "gpt_bigcode"})
    assert not is_transposed("lm_head.weight", {"model_type": "gpt2"})
