"""An adapter as a server would apply it: what it drops, what it multiplies by, what it refuses."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import peft_adapters as made
from deltarank.adapters import Applied, LoadEffect, apply_adapter, open_adapter
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.errors import AdapterError, UsageError
from deltarank.servers import get_server, server_names
from refusals import refused

ABSENT = object()
"""A field that is not in the configuration."""

ATTENTION = "model.layers.{}.self_attn.{}_proj"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("pair")
    base = made.write_base(made.llama, home / "base")
    return base, made.finetune(base, home / "tuned")


def factors(*modules: str, rank: int = 4, side: int = 32) -> dict[str, torch.Tensor]:
    weights = {}
    for module in modules:
        weights[f"base_model.model.{module}.lora_A.weight"] = torch.ones(rank, 32)
        weights[f"base_model.model.{module}.lora_B.weight"] = torch.ones(side, rank)
    return weights


def q_and_o(rank: int = 4) -> dict[str, torch.Tensor]:
    return factors(*(ATTENTION.format(layer, word) for layer in (0, 1) for word in "qo"), rank=rank)


def o_alone(rank: int = 4) -> dict[str, torch.Tensor]:
    """No server fuses o_proj with another module."""
    return factors(*(ATTENTION.format(layer, "o") for layer in (0, 1)), rank=rank)


Apply = Callable[..., Applied]


@pytest.fixture
def applied(pair: tuple[Path, Path], tmp_path: Path) -> Apply:
    """An adapter with these weights and this configuration, as the server applies it to the pair."""

    def apply(weights: Mapping[str, torch.Tensor], server: str | None, **config: Any) -> Applied:
        targets = sorted({key.split(".lora_")[0].rpartition(".")[2] for key in weights if ".lora_" in key})
        fields = {"r": 4, "lora_alpha": 8, "target_modules": targets, **config}
        made.write_adapter(tmp_path, weights, **{key: value for key, value in fields.items() if value is not ABSENT})
        with open_adapter(tmp_path) as lora, open_checkpoint(pair[0]) as before, open_checkpoint(pair[1]) as after:
            pairing = pair_checkpoints(before, after)
            return apply_adapter(lora, (*pairing.pairs, *pairing.summed), server=server, base=before)

    return apply


def scales(found: Applied) -> dict[str, float]:
    return {
        name.removeprefix("model.layers.").removesuffix("_proj.weight"): change.scale
        for name, changes in found.changes.items()
        for change in changes
    }


@pytest.mark.parametrize(
    ("server", "of_q", "of_o"),
    [
        (None, 12 / 2, 8 / 4),
        ("peft", 12 / 2, 8 / 4),
        ("vllm", 12 / 2, 8 / 4),
        ("vllm-0.31", 8 / 4, 8 / 4),
        ("llama.cpp", 8 / 2, 8 / 4),
    ],
)
def test_patterns_move_the_scale_where_they_are_read(
    applied: Apply, server: str | None, of_q: float, of_o: float
) -> None:
    q = [ATTENTION.format(layer, "q") for layer in (0, 1)]
    o = [ATTENTION.format(layer, "o") for layer in (0, 1)]
    weights = factors(*q, rank=2) | factors(*o)
    found = applied(weights, server, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 12})

    assert scales(found) == {"0.self_attn.q": of_q, "1.self_attn.q": of_q, "0.self_attn.o": of_o, "1.self_attn.o": of_o}
    assert any("alpha_pattern" in note for note in found.notes) == (server not in (None, "peft", "vllm"))


@pytest.mark.parametrize(
    ("server", "scale"), [("peft", 4.0), ("vllm", 4.0), ("lorax", 4.0), ("sglang", 2.0), ("llama.cpp", 2.0)]
)
def test_rank_stabilisation_is_ignored_by_two(applied: Apply, server: str, scale: float) -> None:
    found = applied(o_alone(), server, use_rslora=True)

    assert set(scales(found).values()) == {scale}
    assert scale == 8 / (math.sqrt(4) if scale == 4 else 4)
    assert bool(found.notes) == (scale == 2.0)


def test_lorax_drops_a_module_that_lacks_a_layer(applied: Apply) -> None:
    weights = factors(ATTENTION.format(0, "q"), *(ATTENTION.format(layer, "o") for layer in (0, 1)))

    found = applied(weights, "lorax")

    assert set(scales(found)) == {"0.self_attn.o", "1.self_attn.o"}
    assert [entry.name for entry in found.unused] == ["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    assert "LoRAX drops" in found.unused[0].reason


@pytest.mark.parametrize(
    ("server", "does"),
    [("vllm", "refuses"), ("llama.cpp", "refuses"), ("sglang", "ignores"), ("lorax", "ignores"), ("peft", "takes")],
)
def test_whole_tensors(applied: Apply, server: str, does: str) -> None:
    weights = o_alone() | {"base_model.model.lm_head.weight": torch.ones(48, 32)}
    options = {"modules_to_save": ["lm_head"]}
    if does == "refuses":
        with refused("adapter-refused", AdapterError, match="lm_head"):
            applied(weights, server, **options)
    else:
        found = applied(weights, server, **options)
        assert ("lm_head.weight" in found.changes) == (does == "takes")
        assert len(found.unused) == (does == "ignores")


def test_llama_cpp_loads_norms_and_ignores_them(applied: Apply) -> None:
    found = applied(q_and_o() | {"base_model.model.model.norm.weight": torch.ones(32)}, "llama.cpp")

    assert [entry.name for entry in found.unused] == ["base_model.model.model.norm.weight"]


@pytest.mark.parametrize("config", [{"bias": "all"}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}])
def test_llama_cpp_reads_no_more_of_the_configuration_than_alpha(applied: Apply, config: dict[str, Any]) -> None:
    with refused("adapter-refused", AdapterError):
        applied(q_and_o(), "vllm", **config)
    assert len(applied(q_and_o(), "llama.cpp", **config).changes) == 4


@pytest.mark.parametrize("server", ["vllm", "llama.cpp"])
def test_biases_are_refused(applied: Apply, server: str) -> None:
    weights = q_and_o() | {"base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias": torch.ones(32)}
    with pytest.raises(AdapterError, match="biases"):
        applied(weights, server)


def test_vllm_has_a_highest_rank(applied: Apply) -> None:
    with pytest.raises(AdapterError, match="rank 600"):
        applied(q_and_o(600), "vllm", r=600)


def test_lorax_wants_one_rank(applied: Apply) -> None:
    weights = factors(ATTENTION.format(0, "q")) | factors(ATTENTION.format(1, "q"), rank=2)

    with pytest.raises(AdapterError, match="`q_proj` have different ranks"):
        applied(weights, "lorax")


@pytest.mark.parametrize(
    "config", [{"rank_pattern": {"q_proj": 4}}, {"alpha_pattern": {"q_proj": 4}}, {"use_rslora": True}]
)
def test_what_is_not_portable_is_refused(applied: Apply, config: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match="Not every server loads"):
        applied(o_alone(), "portable", **config)
    assert len(applied(o_alone(), "portable").changes) == 2


def test_an_unknown_server_is_refused_with_the_known_ones(applied: Apply) -> None:
    with refused("bad-server", UsageError, match="tgi") as caught:
        applied(q_and_o(), "tgi")
    assert all(name in caught.value.cure for name in server_names())


def test_names_behind_a_wrapper_are_not_found(applied: Apply) -> None:
    """PEFT looks for the names of the class, and for no others."""
    weights = {key.replace("model.model.", "model.model.language_model."): value for key, value in q_and_o().items()}
    found = applied(weights, None)

    assert found.changes == {}
    with refused("adapter-loads-nothing", AdapterError, match="none of the 4 LoRAs") as caught:
        found.check_loads_in_peft()
    assert "Rename `base_model.model.language_model.` in" in caught.value.cure


def test_an_adapter_of_another_size(applied: Apply) -> None:
    weights = factors(*(ATTENTION.format(layer, "q") for layer in (0, 1)), side=64)

    with refused("adapter-wrong-base", AdapterError, match="does not belong to this base") as caught:
        applied(weights, None)
    assert "64 x 4 by 4 x 32 does not fit 32 x 32" in caught.value.message


def test_factors_larger_than_their_matrix(applied: Apply) -> None:
    weights = q_and_o() | factors(ATTENTION.format(0, "v"), rank=1000, side=16)

    found = applied(weights, None)

    assert [entry.reason for entry in found.unused] == ["its rank of 1,000 is far too high for a matrix of 16 x 32"]


def test_an_adapter_of_other_names(applied: Apply) -> None:
    with refused("adapter-wrong-base", AdapterError, match="no such tensor"):
        applied(factors("encoder.block.0.q", "encoder.block.1.q"), None)


def test_an_adapter_of_nothing(applied: Apply) -> None:
    with refused("adapter-empty", AdapterError):
        applied({"nothing": torch.ones(1)}, None)


def test_an_adapter_of_new_biases_alone(applied: Apply) -> None:
    weights = {f"base_model.model.{ATTENTION.format(0, 'q')}.lora_B.bias": torch.ones(32)}
    found = applied(weights, None, lora_bias=True)

    assert (len(found.biases), found.changes, found.unused) == (1, {}, ())


def test_a_few_that_fit_nothing_are_unused(applied: Apply) -> None:
    weights = q_and_o() | factors("model.layers.7.self_attn.q_proj") | factors(ATTENTION.format(0, "k"), side=99)

    found = applied(weights, None)

    assert len(found.changes) == 4
    assert sorted(entry.reason for entry in found.unused) == [
        "99 x 4 by 4 x 32 does not fit 16 x 32",
        "the two checkpoints have no such tensor in common",
    ]


UNFUSED = {
    "v without q": ["v"],
    "q and k": ["q", "k"],
}


@pytest.mark.parametrize("case", UNFUSED)
def test_sglang_needs_the_modules_that_it_fuses(applied: Apply, case: str) -> None:
    sides = {"q": 32, "k": 16, "v": 16}
    weights: dict[str, torch.Tensor] = {}
    for word in UNFUSED[case]:
        weights |= factors(*(ATTENTION.format(layer, word) for layer in (0, 1)), side=sides[word])
    with refused("adapter-refused", AdapterError, match="which it needs"):
        applied(weights, "sglang")
    assert len(applied(weights, "vllm").changes) == 2 * len(UNFUSED[case])


@pytest.mark.parametrize("server", ["vllm", "llama.cpp"])
def test_keys_as_servers_read_them(applied: Apply, server: str) -> None:
    """With PEFT's prefix, without it or with two; never with the name of the adapter."""
    prefix = "base_model.model."
    for new in ("", prefix * 2):
        weights = {key.replace(prefix, new): value for key, value in q_and_o().items()}
        assert len(applied(weights, server).changes) == 4
    named = {key.replace(".weight", ".default.weight"): value for key, value in q_and_o().items()}
    with refused("adapter-refused", AdapterError, match="the name of an adapter"):
        applied(named, server)


def test_a_module_that_the_base_has_elsewhere(applied: Apply) -> None:
    """vLLM knows the last component of the name, and finds nothing to put it on."""
    weights = q_and_o() | factors("model.layers.7.self_attn.q_proj")
    assert len(applied(weights, "vllm").changes) == 4
    with refused("adapter-refused", AdapterError, match="the base has no module"):
        applied(weights, "llama.cpp")
    with refused("adapter-refused", AdapterError, match="the base has no module"):
        applied(q_and_o() | factors("model.layers.0.self_attn.z_proj"), "vllm")


@pytest.mark.parametrize("side", ["lora_A", "lora_B"])
def test_half_a_lora(applied: Apply, side: str) -> None:
    weights = {key: value for key, value in q_and_o().items() if not ("0.self_attn.q_proj" in key and side in key)}
    assert len(applied(weights, "vllm").changes) == 3
    with refused("adapter-refused", AdapterError, match="a factor is missing"):
        applied(weights, "llama.cpp")


def test_vllm_puts_nothing_where_a_is_missing(applied: Apply) -> None:
    """PEFT puts random numbers there."""
    weights = o_alone()
    del weights[f"base_model.model.{ATTENTION.format(0, 'o')}.lora_A.weight"]

    assert [entry.effect for entry in applied(weights, "vllm").unused] == [LoadEffect.NONE]
    assert [entry.effect for entry in applied(weights, "peft").unused] == [LoadEffect.RANDOM]


@pytest.mark.parametrize(
    ("prefix", "model_type", "loads"),
    [
        ("model.language_model.", "other_vl", True),
        ("language_model.model.", "other_vl", True),
        ("model.", "other_vl", False),
        ("model.", "mistral3", True),
        ("language_model.", "mistral3", False),
    ],
)
def test_vllm_has_names_of_its_own_for_models_with_images(
    pair: tuple[Path, Path], tmp_path: Path, prefix: str, model_type: str, loads: bool
) -> None:
    """benchmarks/servers/vllm.py compares them with vLLM."""
    base, tuned = (with_images(side, tmp_path / side.name, model_type) for side in pair)
    module = ATTENTION.format(0, "o").removeprefix("model.")
    adapter = made.write_adapter(
        tmp_path / "adapter", factors(prefix + module), r=4, lora_alpha=8, target_modules=["o_proj"]
    )
    with open_adapter(adapter) as lora, open_checkpoint(base) as before, open_checkpoint(tuned) as after:
        pairing = pair_checkpoints(before, after)
        found = apply_adapter(lora, (*pairing.pairs, *pairing.summed), server="vllm", base=before).changes

    assert list(found) == ([f"language_model.model.{module}.weight"] if loads else [])


def with_images(side: Path, folder: Path, model_type: str) -> Path:
    """The checkpoint of a text model under the names that it has inside a model with images."""
    made.write_checkpoint(folder, {f"language_model.{name}": w for name, w in made.tensors(side).items()}, side)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.mark.parametrize("server", ["vllm", "sglang", "llama.cpp", "portable"])
def test_servers_have_no_default_for_alpha(applied: Apply, server: str) -> None:
    """PEFT takes 8. vLLM and SGLang have none for r and target_modules either."""
    with refused("adapter-refused", AdapterError, match="no lora_alpha"):
        applied(o_alone(), server, lora_alpha=ABSENT)


def test_vllm_passes_over_modules_named_base_layer(applied: Apply) -> None:
    weights = factors(ATTENTION.format(0, "o")) | factors(f"{ATTENTION.format(1, 'o')}.base_layer")

    assert list(applied(weights, "vllm").changes) == [f"{ATTENTION.format(0, 'o')}.weight"]
    with refused("adapter-refused", AdapterError, match="the base has no module"):
        applied(weights, "llama.cpp")


@pytest.mark.parametrize("server", ["vllm", "llama.cpp", "sglang"])
def test_a_tensor_that_is_no_part_of_a_lora(applied: Apply, server: str) -> None:
    with refused("adapter-refused", AdapterError, match="no part of a LoRA"):
        applied(o_alone() | {"step": torch.ones(1)}, server)


def test_layers_to_transform_is_read_by_peft_alone(applied: Apply) -> None:
    assert len(applied(q_and_o(), None, layers_to_transform=[0]).changes) == 2
    assert len(applied(q_and_o(), "vllm", layers_to_transform=[0]).changes) == 4
    assert len(applied(q_and_o(), "llama.cpp", exclude_modules=["q_proj"]).changes) == 4


def test_llama_cpp_ignores_loras_on_projections_of_latent_attention() -> None:
    llama_cpp, portable = get_server("llama.cpp"), get_server("portable")

    for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa"):
        assert name in llama_cpp.ignored_modules
        assert not llama_cpp.knows_module(name)
        assert name in portable.not_modules
    assert llama_cpp.knows_module("o_proj")
