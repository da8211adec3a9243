"""Names: from tensors in files to PEFT's modules, keys and targets."""

import pytest
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from deltarank.adapters import exact_targets, factor_keys, implied_modules, module_path, module_type

LAYERS = [
    f"model.layers.{i}.{module}.weight"
    for i in range(12)
    for module in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj")
]
TENSORS = ["model.embed_tokens.weight", *LAYERS, "model.norm.weight", "lm_head.weight"]


def modules_of(tensors: list[str]) -> list[str]:
    return [name.removesuffix(".weight") for name in tensors]


def matched_by_peft(targets: list[str], tensors: list[str]) -> list[str]:
    config = LoraConfig(target_modules=targets)
    return [module for module in modules_of(tensors) if check_target_module_exists(config, module)]


def test_a_module_is_a_name_without_its_last_component() -> None:
    assert module_path("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mixer.A_log",
        "../../etc/passwd.weight",
        "a..b.weight",
        ".weight",
        "weight",
        "a b.weight",
        "model.(evil|.*).weight",
        "model.\u202e.weight",
        "x\n.weight",
        "a/b.weight",
        "x." * 600 + "weight",
    ],
)
def test_a_name_that_is_not_the_path_of_a_module_has_none(name: str) -> None:
    assert module_path(name) is None


def test_keys_are_those_of_peft() -> None:
    assert factor_keys("model.layers.0.mlp.up_proj") == (
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight",
    )


def test_the_same_module_of_all_layers_is_a_type() -> None:
    assert module_type("model.layers.3.mlp.up_proj") == module_type("model.layers.17.mlp.up_proj")
    assert module_type("model.layers.3.mlp.up_proj") != module_type("visual.layers.3.mlp.up_proj")


def test_targets_are_last_components_where_those_are_enough() -> None:
    wanted = modules_of(LAYERS)

    assert exact_targets(wanted, implied_modules(TENSORS)) == ["down_proj", "k_proj", "q_proj", "up_proj"]
    assert matched_by_peft(exact_targets(wanted, implied_modules(TENSORS)), TENSORS) == wanted


@pytest.mark.parametrize(
    "excluded", [["model.layers.1.mlp.up_proj"], [f"model.layers.{i}.mlp.up_proj" for i in (0, 3)]]
)
def test_nothing_excluded_matches_again(excluded: list[str]) -> None:
    """Layer 1 is not layer 11: a full name matches only itself."""
    wanted = [module for module in modules_of(LAYERS) if module not in excluded]
    targets = exact_targets(wanted, implied_modules(TENSORS))

    assert matched_by_peft(targets, TENSORS) == wanted
    assert "q_proj" in targets
    assert "up_proj" not in targets


def test_a_module_that_only_holds_others_is_not_matched_either() -> None:
    tensors = ["model.proj.inner.weight", "model.layers.0.proj.weight"]
    targets = exact_targets(["model.layers.0.proj"], implied_modules(tensors))

    assert targets == ["model.layers.0.proj"]
