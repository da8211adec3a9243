"""The keys of an adapter count exactly if PEFT loads them: compared with PEFT's own merge, or its logits."""

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import peft_adapters as made
from deltarank.adapters import Applied, LoadEffect, LoraUpdate, apply_adapter, open_adapter
from deltarank.checkpoints import open_checkpoint, pair_checkpoints
from deltarank.errors import AdapterError
from refusals import refused

Weights = dict[str, Tensor]
Edit = Callable[[Weights], Weights]
PREFIX = "base_model.model."


def renamed(old: str, new: str) -> Edit:
    return lambda weights: {key.replace(old, new): value for key, value in weights.items()}


def with_more(**more: Tensor) -> Edit:
    return lambda weights: weights | {key.replace("__", "."): value for key, value in more.items()}


IGNORED: dict[str, Edit] = {
    "a compiled model": renamed(PREFIX, PREFIX + "_orig_mod."),
    "a compiled PEFT model": renamed(PREFIX, "_orig_mod." + PREFIX),
    "compiled layers": renamed("layers.", "layers._orig_mod."),
    "checkpointed layers": renamed(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
    "sharded layers": renamed(".self_attn.", "._fsdp_wrapped_module.self_attn."),
    "two prefixes": renamed(PREFIX, PREFIX * 2),
    "no prefix": renamed(PREFIX, ""),
    "half a prefix": renamed(PREFIX, "base_model."),
    "another prefix": renamed(PREFIX, "model.base_model."),
    "without model.": renamed(PREFIX + "model.", PREFIX),
    "of a larger model": renamed(PREFIX + "model.", PREFIX + "language_model.model."),
    "an adapter of another name": renamed(".weight", ".chat.weight"),
}
LOADED: dict[str, Edit] = {
    "as PEFT writes them": lambda weights: weights,
    "with the adapter's name": renamed(".weight", ".default.weight"),
    "A with the adapter's name": renamed("lora_A.weight", "lora_A.default.weight"),
    "in float64": lambda weights: {key: value.double() for key, value in weights.items()},
    "in 8-bit floats": lambda weights: {key: value.to(torch.float8_e4m3fn) for key, value in weights.items()},
    "as integers": lambda weights: {key: (100 * value).to(torch.int8) for key, value in weights.items()},
    "both names, the plain one later": lambda weights: (
        weights | {key.replace(".weight", ".default.weight"): value + 1 for key, value in weights.items()}
    ),
    "beside strays": with_more(optimizer__state=torch.ones(2), base_model__model__model__step=torch.ones(1)),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "fan_in_fan_out on nn.Linear": {"fan_in_fan_out": True},
    "one layer of two": {"layers_to_transform": [0]},
    "one layer by its number": {"layers_to_transform": 1},
    "one layer of a list": {"layers_to_transform": [1], "layers_pattern": ["layers"]},
    "no layers named": {"layers_to_transform": []},
    "bias: all without a bias": {"bias": "all"},
    "a module that does not exist": {"target_modules": ["q_proj", "v_proj", "nowhere"]},
    "a module that was saved in vain": {"modules_to_save": ["nowhere"]},
    "more targets than factors": {"target_modules": "all-linear"},
    "PEFT's own targets": {"target_modules": None},
    "an excluded module": {"exclude_modules": ["v_proj"]},
    "an excluded expression": {"exclude_modules": r".*layers\.0.*"},
    "an alpha of zero": {"lora_alpha": 0},
    "a field of a later version": {"of_the_future": 3},
}
REFUSED: dict[str, dict[str, Any]] = {
    "a rank that is not the file's": {"r": 3},
    "a rank_pattern that is not the file's": {"rank_pattern": {"q_proj": 1}},
    "a saved module without its tensor": {"modules_to_save": ["lm_head"]},
    "a saved module with factors instead": {"modules_to_save": ["q_proj"]},
    "a list of layers that is not there": {"layers_to_transform": [0], "layers_pattern": "blocks"},
    "no target that exists": {"target_modules": ["nowhere"]},
    "a norm as a target": {"target_modules": ["q_proj", "norm"]},
    "all targets excluded": {"exclude_modules": ["q_proj", "v_proj"]},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    made.write_base(made.llama, home / "base")
    made.finetune(home / "base", home / "other")
    made.train(home / "base", home / "good", r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
    return home


def edited(home: Path, folder: Path, edit: Edit = lambda weights: weights, **config: Any) -> Path:
    shutil.copytree(home / "good", folder)
    weights = edit(load_file(folder / "adapter_model.safetensors"))
    save_file({key: value.clone() for key, value in weights.items()}, folder / "adapter_model.safetensors")
    made.edit_config(folder, **config)
    return folder


def applied(home: Path, adapter: Path) -> tuple[Applied, dict[str, Tensor]]:
    """What is added, by tensor."""
    with (
        open_adapter(adapter) as lora,
        open_checkpoint(home / "base") as base,
        open_checkpoint(home / "other") as other,
    ):
        pairing = pair_checkpoints(base, other)
        found = apply_adapter(lora, (*pairing.pairs, *pairing.summed), server=None, base=base)
        added = {}
        for name, changes in found.changes.items():
            update = LoraUpdate(lora, changes, device=torch.device("cpu"), dtype=torch.float64)
            before = made.tensors(home / "base")[name].double()
            added[name] = update.rows(0, before.reshape(changes[0].placement.target.base.shape)).reshape(before.shape)
        return found, added


def merged_by_peft(home: Path, adapter: Path) -> Mapping[str, Tensor]:
    model = AutoModelForCausalLM.from_pretrained(home / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {name: tensor.detach().clone() for name, tensor in merged.state_dict().items()}


def assert_as_peft(home: Path, adapter: Path) -> Applied:
    found, added = applied(home, adapter)
    merged = merged_by_peft(home, adapter)
    for name, before in made.tensors(home / "base").items():
        truth = merged[name].double() - before.double()
        ours = added.get(name, torch.zeros_like(truth))
        assert float((ours - truth).abs().max()) <= 1e-5 * (1 + float(truth.abs().max())), name
    return found


@pytest.mark.parametrize("case", IGNORED)
def test_keys_that_peft_ignores_have_no_effect(case: str, home: Path, tmp_path: Path) -> None:
    adapter = edited(home, tmp_path / "a", IGNORED[case])
    found, added = applied(home, adapter)
    merged = merged_by_peft(home, adapter)

    assert all(torch.equal(before, merged[name]) for name, before in made.tensors(home / "base").items())
    assert added == {}
    with refused("adapter-loads-nothing", AdapterError):
        found.check_loads_in_peft()


@pytest.mark.parametrize("case", [case for case in IGNORED if case != "another prefix"])
def test_the_cure_names_keys_that_peft_loads(case: str, home: Path, tmp_path: Path) -> None:
    found, _ = applied(home, edited(home, tmp_path / "a", IGNORED[case]))

    assert found.unloaded is not None
    assert (found.unloaded.loaded, found.unloaded.total) == (0, 4)
    assert PREFIX + "model.layers.0.self_attn.q_proj.lora_B.weight" in found.unloaded.cure


@pytest.mark.parametrize("case", LOADED)
def test_keys_that_peft_loads_count(case: str, home: Path, tmp_path: Path) -> None:
    found = assert_as_peft(home, edited(home, tmp_path / "a", LOADED[case]))

    assert len(found.changes) == 4
    assert found.unloaded is None
    found.check_loads_in_peft()


@pytest.mark.parametrize("case", CONFIGS)
def test_the_configuration_counts_as_in_peft(case: str, home: Path, tmp_path: Path) -> None:
    assert_as_peft(home, edited(home, tmp_path / "a", **CONFIGS[case])).check_loads_in_peft()


@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_refuses_is_refused(case: str, home: Path, tmp_path: Path) -> None:
    adapter = edited(home, tmp_path / "a", **REFUSED[case])
    with pytest.raises((RuntimeError, KeyError, ValueError)):
        merged_by_peft(home, adapter)
    found, _ = applied(home, adapter)

    assert any(entry.effect is LoadEffect.REFUSED for entry in found.unused)
    with refused("adapter-refused", AdapterError):
        found.check_loads_in_peft()


def test_half_of_the_loras_are_loaded(home: Path, tmp_path: Path) -> None:
    adapter = edited(home, tmp_path / "a", renamed("layers.1.", "layers.1._orig_mod."))
    found = assert_as_peft(home, adapter)

    assert found.unloaded is not None
    assert found.unloaded.sentence.startswith("PEFT loads 2 of the 4 LoRAs in this file")


def test_factors_that_are_transposed_are_refused(home: Path, tmp_path: Path) -> None:
    """Though they would fit the transpose of the matrix."""
    found, added = applied(home, edited(home, tmp_path / "a", _swapped_v))

    assert "model.layers.0.self_attn.v_proj.weight" not in added
    with refused("adapter-refused", AdapterError):
        found.check_loads_in_peft()


def _swapped_v(weights: Weights) -> Weights:
    """A and B of v_proj exchanged and transposed."""
    other = {"lora_A": "lora_B", "lora_B": "lora_A"}
    swapped = dict(weights)
    for key in (key for key in weights if "layers.0.self_attn.v_proj" in key):
        side = "lora_A" if "lora_A" in key else "lora_B"
        swapped[key] = weights[key.replace(side, other[side])].T.contiguous()
    return swapped


@pytest.mark.parametrize(
    ("config", "reason", "cure"),
    [
        (
            {"exclude_modules": ["v_proj"]},
            "exclude_modules names its module",
            "Remove its modules from exclude_",
        ),
        ({"layers_to_transform": [0]}, "layers_to_transform leaves out its layer", "Name its layers in layers_to_"),
        ({"target_modules": ["q_proj"]}, "target_modules does not name its module", "Name its modules in target_mod"),
    ],
    ids=["excluded", "layers", "targets"],
)
@pytest.mark.parametrize("known_class", [True, False])
def test_the_field_that_leaves_a_lora_out_is_named(
    home: Path, tmp_path: Path, config: dict[str, Any], reason: str, cure: str, known_class: bool
) -> None:
    adapter = edited(home, tmp_path / "a", **config)
    base = home
    if not known_class:
        base = tmp_path
        made.write_checkpoint(tmp_path / "base", made.tensors(home / "base"), home / "base")
        (tmp_path / "base" / "config.json").write_text("{}")
        made.write_checkpoint(tmp_path / "other", made.tensors(home / "other"), home / "base")
    unloaded = applied(base, adapter)[0].unloaded

    assert unloaded
    assert (unloaded.loaded, unloaded.total) == (2, 4)
    assert unloaded.reason.startswith(reason)
    assert unloaded.cure.startswith(cure)
