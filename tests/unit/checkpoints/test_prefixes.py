"""Names behind the prefixes of frameworks, of PEFT and of larger models; and copies of tensors in one file."""

from pathlib import Path

import pytest
import torch
from files import Tensors, llama, numbers, pairing, read, save
from safetensors.torch import load_file
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM, RobertaModel

from deltarank import compare
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.errors import PairingError
from deltarank.results import Outcome

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def flux(seed: int = 0) -> Tensors:
    parts = ("double_blocks.0.img_attn.qkv", "double_blocks.1.img_attn.qkv", "single_blocks.0.linear1", "img_in", "out")
    return {f"{part}.weight": numbers(48, 16, seed=seed + i) for i, part in enumerate(parts)}


PREFIXES = (
    *("model.diffusion_model.", "diffusion_model.", "module.", "_fsdp_wrapped_module."),
    *("student.", "ema.", "policy.net.", "bert.", "vit."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("on_base", [False, True])
def test_a_prefix_on_one_side_is_found(tmp_path: Path, prefix: str, on_base: bool) -> None:
    behind = {prefix + name: tensor for name, tensor in flux(seed=9).items()}
    other = {"text_encoders.clip_l.text_model.q.weight": numbers(8, 8)}  # whole checkpoints have more in them
    plain, prefixed = save(tmp_path / "a", flux()), save(tmp_path / "b", behind | other)

    plan = pairing(prefixed, plain) if on_base else pairing(plain, prefixed)

    assert len(plan.pairs) == 5
    assert any(f"`{prefix}`" in note for note in plan.notes)
    assert plan.unpaired().matrices == 1


@pytest.mark.parametrize("wrapper", ["pretrained_model", "student"])
@pytest.mark.parametrize("on_base", [False, True])
def test_what_lies_directly_in_the_wrapper_is_found_too(tmp_path: Path, wrapper: str, on_base: bool) -> None:
    """TRL wraps a model with its head: `pretrained_model.model.layers` and `pretrained_model.lm_head`."""
    behind = {f"{wrapper}.{name}": tensor for name, tensor in llama(seed=9).items()}
    value = {"v_head.summary.weight": numbers(1, 16)}
    plain, wrapped = save(tmp_path / "a", llama()), save(tmp_path / "b", behind | value)
    plan = pairing(wrapped, plain) if on_base else pairing(plain, wrapped)

    assert [skip.name for skip in plan.skipped] == ["v_head.summary.weight"]


NEOX = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}
ENCODER = {"model_type": "gpt_neox", "architectures": ["GPTNeoXModel"]}


def _with_head(*heads: str, seed: int = 0) -> Tensors:
    body = {name: tensor for name, tensor in llama(seed=seed).items() if name != "lm_head.weight"}
    return body | {f"{head}.weight": numbers(40, 16, seed=seed + 50 + i) for i, head in enumerate(heads)}


@pytest.mark.parametrize("names", [("embed_out", "lm_head"), ("lm_head", "embed_out")])
def test_the_only_output_head_of_each_side_is_paired(tmp_path: Path, names: tuple[str, str]) -> None:
    """transformers 5 renames GPT-NeoX's `embed_out` to `lm_head`."""
    base = save(tmp_path / "a", _with_head(names[0]), config=NEOX)
    finetune = save(tmp_path / "b", _with_head(names[1], seed=9), config=NEOX)
    plan = pairing(base, finetune)
    head = next(each for each in plan.summed if each.name == f"{names[1]}.weight")

    assert not plan.skipped
    assert torch.equal(read(head)[0], load_file(base / "model.safetensors")[f"{names[0]}.weight"])
    assert any("the output head is" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("heads", "config"),
    [(("lm_head",), ENCODER), (("lm_head",), None), (("lm_head", "text_lm_head"), NEOX)],
    ids=["no language model", "no configuration", "two heads"],
)
def test_heads_of_other_names_stay_unpaired_where_it_is_not_certain(
    tmp_path: Path, heads: tuple[str, ...], config: dict[str, object] | None
) -> None:
    base = save(tmp_path / "a", _with_head("embed_out"), config=NEOX)
    finetune = save(tmp_path / "b", _with_head(*heads, seed=9), config=config)

    assert "embed_out.weight" in {skip.name for skip in pairing(base, finetune).skipped}


def test_two_sets_behind_two_prefixes_are_refused_by_name(tmp_path: Path) -> None:
    both = {f"{p}.{name}": tensor for p in ("one", "two") for name, tensor in flux(seed=9).items()}
    with pytest.raises(PairingError, match=r"several times, under `one\.` and `two\.`") as caught:
        pairing(save(tmp_path / "a", flux()), save(tmp_path / "b", both))
    assert caught.value.cure.startswith("Save the set of weights that is meant")


def test_averaged_weights_beside_the_trained_are_a_copy(tmp_path: Path) -> None:
    finetune = llama(seed=9)
    averaged = {"ema." + name: tensor.clone() for name, tensor in finetune.items()}
    plan = pairing(save(tmp_path / "a", llama()), save(tmp_path / "b", finetune | averaged))

    assert {skip.outcome for skip in plan.skipped} == {Outcome.DUPLICATE}
    assert not plan.unpaired().matrices


def test_a_state_dict_of_peft_is_read_as_the_model(tmp_path: Path) -> None:
    """Merged in place, the factors dropped, the wrappers left in."""
    base, merged = llama(), llama(seed=9)
    wrapped = {
        f"base_model.model.{name.replace('_proj.', '_proj.base_layer.')}": tensor for name, tensor in merged.items()
    }
    wrapped["base_model.model.lm_head.modules_to_save.default.weight"] = wrapped.pop("base_model.model.lm_head.weight")
    wrapped["base_model.model.lm_head.original_module.weight"] = base["lm_head.weight"]
    folders = save(tmp_path / "a", base), save(tmp_path / "b", wrapped)
    right = pairing(folders[0], save(tmp_path / "c", merged))

    with open_checkpoint(folders[0]) as one, open_checkpoint(folders[1]) as other:
        plan = pair_checkpoints(one, other)
        places = [(pair.layer, pair.module, pair.base.tensor) for pair in plan.pairs]
        assert places == [(pair.layer, pair.module, pair.base.tensor) for pair in right.pairs]
        assert all(torch.equal(read(pair)[1], merged[pair.base.tensor]) for pair in plan.pairs)
    assert {x.base.tensor for x in plan.summed} == {x.base.tensor for x in right.summed}
    assert [skip.outcome for skip in plan.skipped] == [Outcome.DUPLICATE]


@pytest.mark.parametrize(
    ("config", "with_head", "bare"),
    [(BertConfig, BertForMaskedLM, BertModel), (RobertaConfig, RobertaForMaskedLM, RobertaModel)],
)
def test_a_base_with_a_head_matches_a_finetune_without(
    tmp_path: Path, config: type, with_head: type, bare: type
) -> None:
    with_head(config(**SMALL)).save_pretrained(tmp_path / "base")
    bare(config(**SMALL)).save_pretrained(tmp_path / "finetune")
    results = compare(tmp_path / "base", tmp_path / "finetune", ranks=(8,))

    assert len(results.matrices) == 12
    assert "which could not be paired" in results.verdict.sentences[0]  # the pooler and the head


def test_names_of_old_norms_are_todays(tmp_path: Path) -> None:
    new: dict[str, torch.Tensor] = {}
    for layer in ("bert.encoder.layer.0.output.", "bert.encoder.layer.1.output."):
        new[layer + "dense.weight"] = numbers(8, 8)
        new |= {f"{layer}LayerNorm.{part}": numbers(8) for part in ("weight", "bias")}
    norms = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {n.replace("LayerNorm.weight", norms["LayerNorm.weight"]): t for n, t in new.items()}
    old = {n.replace("LayerNorm.bias", norms["LayerNorm.bias"]): t for n, t in old.items()}
    plan = pairing(save(tmp_path / "a", old), save(tmp_path / "b", new))

    assert len(plan.pairs) + len(plan.summed) == 6
    assert plan.skipped == ()
