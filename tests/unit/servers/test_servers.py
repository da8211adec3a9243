"""The rules of servers: dated, with sources, and in words that the code knows."""

import re

import pytest

from deltarank.errors import UsageError
from deltarank.servers import get_server, is_transposed, rules_date, server_names
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
    assert set(rules.carries.values()) <= {"whole", "factors", "on request"}
    assert list(rules.candidate_ranks) == sorted(rules.candidate_ranks)


def test_every_server_accepts_the_ranks_of_a_portable_adapter() -> None:
    for rank in get_server("portable").candidate_ranks:
        for name in server_names():
            get_server(name).check_rank(rank)


def test_a_rank_that_is_not_servable_is_refused_with_those_that_are() -> None:
    with refused(
        "illegal-rank", UsageError, match="servable ranks are 1, 8, 16, 32, 64, 128, 256, 320 and 512"
    ) as caught:
        get_server("vllm").check_rank(48)

    assert "--rank 64" in caught.value.cure


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
