"""Experts, stored one by one or in one tensor: extracted, loaded by PEFT itself, and read back by `verify`."""

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import deltarank
import peft_adapters as made
from deltarank.errors import AdapterError
from deltarank.results import Outcome, TensorChange
from deltarank.tensor_names import kind_of_tensor
from refusals import refused
from tiny_architectures import (
    EXPERTS,
    GPT_OSS,
    MORE_EXPERTS,
    QWEN3_MOE,
    Make,
    architecture,
    logits,
    served,
    with_rank,
    write_pair,
)

Pairs = Callable[[str], tuple[Path, Path]]

RANK = 6
LEFT = ["*norm*", "*lm_head*", "*embed*"]
"""What PEFT would carry as it is: the oracle has factors only."""

MAKES: Mapping[str, Make] = {
    "gpt-oss": EXPERTS["gpt-oss"],
    # As in the real one, down_proj is square: its orientation cannot be seen from its shape.
    "square gpt-oss": architecture("gpt_oss", **GPT_OSS | {"intermediate_size": 32}),
    # Experts of smaller ranks than the attention.
    "thin gpt-oss": architecture("gpt_oss", **GPT_OSS | {"intermediate_size": 12}),
    # Modules beside the experts that bear an expert's name: a shared expert, or a dense layer.
    "qwen2 moe": MORE_EXPERTS["qwen2 moe"],
    "glm4 moe": MORE_EXPERTS["glm4 moe"],
    "qwen3 moe with a dense layer": architecture("qwen3_moe", **QWEN3_MOE, mlp_only_layers=[0]),
}
CONFUSED = ("qwen3 moe with a dense layer", "glm4 moe")
"""PEFT takes the dense layer or the shared expert of these for experts."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Made when first asked for."""
    home = tmp_path_factory.mktemp("experts")
    return functools.cache(lambda name: write_pair(MAKES[name], home / name))


def routers(base: Path) -> list[str]:
    """By name: a glob that matches nothing is refused, and not every model has one."""
    return [name for name in load_file(base / "model.safetensors") if kind_of_tensor(name) == "router"]


@pytest.mark.parametrize("merged", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MAKES)
def test_base_and_adapter_are_base_and_rank_r_delta(pairs: Pairs, tmp_path: Path, name: str, merged: bool) -> None:
    """In PEFT itself, whose warnings of missing keys are errors here."""
    base, finetune = pairs(name)
    biases = ["*.bias"] if name == "qwen2 moe" else []  # it alone has biases and no experts for PEFT
    exclude = [*LEFT, *routers(base), *biases]
    adapter = deltarank.extract(base, finetune, rank=RANK, server="peft", output=tmp_path / "a", exclude=exclude)
    truth = with_rank(base, finetune, [m.name for m in adapter.matrices], RANK, tmp_path / "truth")
    has_experts = name != "qwen2 moe"  # of which PEFT reads no experts

    assert any(".experts." in m.name for m in adapter.matrices) == has_experts
    torch.testing.assert_close(logits(base, tmp_path / "a", merged=merged), logits(truth), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", MAKES)
def test_verify_measures_what_extract_promises(pairs: Pairs, tmp_path: Path, name: str) -> None:
    adapter = deltarank.extract(*pairs(name), rank=RANK, server="peft", output=tmp_path / "a")
    seen = deltarank.verify(*pairs(name), tmp_path / "a")
    rows = {row.name: row.energies for row in seen.tensors if row.change is TensorChange.LORA}

    assert seen.unused == ()
    assert rows.keys() == {m.name for m in adapter.matrices}
    assert seen.whole.share_lost == pytest.approx(1 - adapter.budget.kept, rel=1e-6)
    for matrix in adapter.matrices:
        assert matrix.written is not None
        assert rows[matrix.name].share_lost == pytest.approx(matrix.written.energy_lost, rel=1e-5)


@pytest.mark.parametrize("name", CONFUSED)
def test_modules_that_peft_mistakes_for_experts_are_left_out_of_a_portable_adapter(
    pairs: Pairs, tmp_path: Path, name: str
) -> None:
    base, finetune = pairs(name)
    adapter = deltarank.extract(base, finetune, rank=16, output=tmp_path / "a")
    served(base, tmp_path / "a")
    refused = [tensor.name for tensor in adapter.budget.tensors if "does not apply factors" in tensor.reason]

    assert adapter.load_check.loads
    assert refused
    assert all("mlp." in name for name in refused)
    assert not any("mlp." in m.path for m in adapter.matrices)


@pytest.mark.parametrize("name", CONFUSED)
def test_modules_that_peft_mistakes_for_experts_are_noted(pairs: Pairs, tmp_path: Path, name: str) -> None:
    """An adapter for vLLM names modules as vLLM reads them; PEFT finds no expert's factors and drops these."""
    base, finetune = pairs(name)
    adapter = deltarank.extract(base, finetune, rank=16, server="vllm", output=tmp_path / "a")
    model = AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(model, tmp_path / "a")
    wrapped = {name for name, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    dropped = {m.path for m in adapter.matrices if m.path not in wrapped}
    as_peft = deltarank.verify(base, finetune, tmp_path / "a")
    as_server = deltarank.verify(base, finetune, tmp_path / "a", server="vllm")
    told_by_verify = " ".join([*as_peft.sentences, *as_peft.notes])

    assert "takes modules of this name for single experts" in told_by_verify
    assert "--server peft" in told_by_verify
    assert "target_modules" not in told_by_verify  # it names them, and the file has their factors
    assert any("missing adapter keys" in str(each.message) for each in told)
    assert dropped == {m.path for m in adapter.matrices if "mlp." in m.path}
    assert any("mlp.gate_proj" in note and "--server peft" in note for note in adapter.notes)
    assert adapter.load_check.loads is False
    assert {entry.name.split(".lora_")[0] for entry in as_peft.unused} == {f"base_model.model.{p}" for p in dropped}
    assert as_server.unused == ()


def test_qwen2_moe_s_shared_expert_is_loaded_as_it_is_named(pairs: Pairs, tmp_path: Path) -> None:
    """PEFT converts no configuration of this model, so nothing is misread, and nothing is warned of."""
    base, finetune = pairs("qwen2 moe")
    adapter = deltarank.extract(base, finetune, rank=8, output=tmp_path / "a")

    assert any("shared_expert.gate_proj" in m.path for m in adapter.matrices)
    assert not any("takes" in note for note in adapter.notes)


def test_experts_that_share_a_tensor_have_ranks_of_their_own_and_zeros_where_nothing_changed(
    pairs: Pairs, tmp_path: Path
) -> None:
    base, _ = pairs("thin gpt-oss")
    weights = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    weights[name][2] += 0.01 * torch.randn(weights[name][2].shape, generator=torch.Generator().manual_seed(0))
    tuned = made.write_checkpoint(tmp_path / "tuned", weights, base)
    adapter = deltarank.extract(base, tuned, rank=32, server="peft", output=tmp_path / "a")

    assert [m.name for m in adapter.matrices if m.outcome is Outcome.MEASURED] == [f"{name}[2]"]
    assert made.config_of(tmp_path / "a")["rank_pattern"][name] == 12
    torch.testing.assert_close(logits(base, tmp_path / "a"), logits(tuned), atol=2e-5, rtol=1e-4)


def test_experts_that_are_excluded_stay_out_all_together(pairs: Pairs, tmp_path: Path) -> None:
    exclude = [*LEFT, "*layers.0.mlp.experts.down_proj"]
    adapter = deltarank.extract(*pairs("gpt-oss"), rank=8, server="peft", output=tmp_path / "a", exclude=exclude)

    assert not any(".experts." in m.name for m in adapter.matrices)
    assert "target_parameters" not in made.config_of(tmp_path / "a")
    assert any("all experts or none" in t.reason for t in adapter.budget.tensors)


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        ("portable", "bare parameters"),
        ("sglang", "whole tensors"),
        ("lorax", "bare parameters"),
        ("llama.cpp", "bare parameters"),
    ],
)
def test_other_servers_are_given_no_fused_experts_and_refuse_them(
    pairs: Pairs, tmp_path: Path, server: str, reason: str
) -> None:
    pair = pairs("gpt-oss")
    adapter = deltarank.extract(*pair, rank=8, server=server, output=tmp_path / "a")
    deltarank.extract(*pair, rank=8, server="peft", output=tmp_path / "peft", exclude=LEFT)
    with refused("adapter-refused", AdapterError, match=reason):
        deltarank.verify(*pair, tmp_path / "peft", server=server)

    assert {t.kind for t in adapter.budget.tensors} >= {"expert", "router"}
    assert not any(".experts" in key for key in load_file(tmp_path / "a" / "adapter_model.safetensors"))


def test_vllm_takes_experts_that_are_asked_for(pairs: Pairs, tmp_path: Path) -> None:
    pair = pairs("gpt-oss")
    unasked = deltarank.extract(*pair, rank=8, server="vllm", output=tmp_path / "unasked")
    adapter = deltarank.extract(
        *pair, rank=8, server="vllm", output=tmp_path / "a", include=["*_proj*", "*experts*"], exclude=["*bias"]
    )
    seen = deltarank.verify(*pair, tmp_path / "a", server="vllm")
    reasons = {t.reason for t in unasked.budget.tensors if t.kind == "expert"}

    assert reasons == {"experts, which only some versions of vLLM load: extracted if included by name"}
    assert sum(".experts." in m.name for m in adapter.matrices) == 2 * 2 * 4
    assert seen.unused == ()
    assert {row.name for row in seen.tensors if row.change is TensorChange.LORA} == {m.name for m in adapter.matrices}


def test_a_trained_lora_on_experts_is_read_as_peft_merges_it(pairs: Pairs, tmp_path: Path) -> None:
    """Trained and written by PEFT: other scales, one parameter of two, a pattern for it."""
    base, _ = pairs("square gpt-oss")
    config = {
        "r": 2,
        "lora_alpha": 6,
        "target_modules": ["q_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj"],
        "rank_pattern": {"experts.down_proj": 3},
        "alpha_pattern": {"experts.down_proj": 9},
    }
    adapter = made.train(base, tmp_path / "trained", **config)
    merged = made.merge(base, adapter, tmp_path / "merged")
    seen = deltarank.verify(base, merged, adapter)
    touched = {row.name: row for row in seen.tensors if row.change is TensorChange.LORA}

    assert seen.unused == ()
    assert len(touched) == 2 + 2 * 4 + 4
    assert seen.whole.share_lost is not None
    assert seen.whole.share_lost < 1e-9
    assert touched["model.layers.1.mlp.experts.down_proj[3]"].rank == 3
    assert touched["model.layers.1.mlp.experts.gate_up_proj[0]"].scale == 3


def test_factors_that_fit_no_targeted_parameter_are_listed(pairs: Pairs, tmp_path: Path) -> None:
    base, finetune = pairs("gpt-oss")
    deltarank.extract(base, finetune, rank=2, server="peft", output=tmp_path / "a", exclude=LEFT)
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    weights[key] = weights[key][:, :-1].contiguous()
    save_file(weights, tmp_path / "a" / "adapter_model.safetensors")
    seen = deltarank.verify(base, finetune, tmp_path / "a")

    assert [entry.reason for entry in seen.unused] == [
        "its shape fits no targeted parameter of model.layers.0.mlp.experts"
    ]
