"""The rules of servers: dated, with sources, and each command line names all of them."""

from __future__ import annotations

import re

import pytest

from deltarank.adapters import is_transposed, kind_of, rules_date, server, server_names, words_for
from deltarank.cli.extract import SERVERS
from deltarank.errors import UsageError


def test_the_command_offers_the_servers_that_have_rules() -> None:
    assert list(SERVERS) == server_names()


def test_the_rules_are_dated() -> None:
    assert re.fullmatch(r"20\d\d-\d\d", rules_date())


@pytest.mark.parametrize("name", server_names())
def test_each_server_has_sources_and_words_that_are_known(name: str) -> None:
    rules = server(name)

    assert rules.sources
    assert rules.scale in {"config", "tensor", "patterns"}
    for word in (rules.patterns, rules.rslora, rules.bias, rules.modules_to_save):
        assert word in {"honoured", "ignored", "refused"}
    assert rules.coverage in {"any", "whole types"}
    assert set(rules.carries.values()) <= {"whole", "factors", "asked"}
    assert list(rules.candidates) == sorted(rules.candidates)


def test_a_portable_adapter_is_legal_everywhere() -> None:
    for rank in server("portable").candidates:
        for name in server_names():
            server(name).refuse_rank(rank)


def test_an_illegal_rank_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(UsageError, match="legal are 1, 8, 16, 32, 64, 128, 256, 320 and 512") as refused:
        server("vllm").refuse_rank(48)

    assert refused.value.slug == "illegal-rank"
    assert "--rank 64" in refused.value.cure


def test_an_unknown_server_is_refused() -> None:
    with pytest.raises(UsageError, match="'tgi'") as refused:
        server("tgi")

    assert refused.value.slug == "bad-server"


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
def test_kinds_of_tensors_are_told_by_name(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


def test_kinds_have_words() -> None:
    assert words_for("norm") == "norms"
    assert words_for("added tokens") == "added tokens"


def test_a_conv1d_is_known_by_model_and_name() -> None:
    assert is_transposed("transformer.h.0.attn.c_attn.weight", {"model_type": "gpt2"})
    assert not is_transposed("transformer.h.0.attn.c_attn.weight", {"model_type": "gpt_bigcode"})
    assert not is_transposed("lm_head.weight", {"model_type": "gpt2"})
