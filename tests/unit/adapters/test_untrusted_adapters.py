"""An adapter is untrusted: what cannot be read is refused with a reason, and unused tensors are listed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import peft_adapters as made
from deltarank.adapters import LoraConfig, open_adapter
from deltarank.errors import AdapterError, CheckpointError, DeltarankError, HeaderError
from refusals import refused

STEM = "base_model.model.model.layers.0.self_attn.q_proj"


def factors(rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{STEM}.lora_A.weight": torch.ones(rank, 32), f"{STEM}.lora_B.weight": torch.ones(32, rank)}


def read_config(folder: Path, text: bytes) -> LoraConfig:
    """The configuration of an adapter with this adapter_config.json."""
    made.write_adapter(folder, factors())
    (folder / "adapter_config.json").write_bytes(text)
    with open_adapter(folder) as adapter:
        return adapter.config


def config_with(folder: Path, **fields: Any) -> LoraConfig:
    return read_config(folder, json.dumps({"peft_type": "LORA", **fields}).encode())


def refusal(folder: Path, text: bytes) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        read_config(folder, text)
    assert caught.value.cure
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"peft_type": null}',
        b"[" * 100_000,
        b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}",
        *(
            json.dumps({"peft_type": "LORA", **wrong}).encode()
            for wrong in (
                {"r": 0},
                {"r": "8"},
                {"r": True},
                {"r": 10**12},
                {"lora_alpha": None},
                {"lora_alpha": 10**400},
                {"lora_alpha": float("nan")},
                {"use_rslora": "yes"},
                {"bias": "some"},
                {"rank_pattern": [1]},
                {"rank_pattern": {"q_proj": -1}},
                {"rank_pattern": {"(a+)+$": 4}},
                {"rank_pattern": {"(": 4}},
                {"modules_to_save": "lm_head"},
                {"target_modules": [1]},
            )
        ),
    ],
    ids=range(24),
)
def test_an_invalid_configuration(text: bytes, tmp_path: Path) -> None:
    assert refusal(tmp_path, text).slug == "adapter-bad-config"


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "PROMPT_TUNING", {"a": 1}, "x" * 10_000])
def test_another_method_is_named(kind: Any, tmp_path: Path) -> None:
    error = refusal(tmp_path, json.dumps({"peft_type": kind}).encode())

    assert error.slug == "adapter-not-lora"
    assert len(error.message) < 200
    assert error.cure.startswith("It cannot be merged" if kind == "PROMPT_TUNING" else "Merge it")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [5]),
        ("init_lora_weights", "pissa_niter_4"),
    ],
)
def test_more_than_a_product_is_named(field: str, value: object, tmp_path: Path) -> None:
    error = refusal(tmp_path, json.dumps({"peft_type": "LORA", field: value}).encode())

    assert error.slug == "adapter-unsupported"
    assert field in error.message
    assert "merge_and_unload" in error.cure


def test_an_empty_configuration_has_the_defaults_of_peft(tmp_path: Path) -> None:
    config = config_with(tmp_path)

    assert (config.rank, config.alpha, config.rslora) == (8, 8.0, False)
    assert config.targets_module("any.module")


def test_the_first_pattern_that_matches_decides(tmp_path: Path) -> None:
    """As PEFT's get_pattern_key: the end of a name, behind a dot or whole."""
    from peft.utils.other import get_pattern_key

    entries = {"layers.1.mlp.up": 1, "up": 2, r"layers\.\d+\.mlp\.down": 3, "^mlp.down": 4, "own|gate": 5, "q.*": 6}
    names = ["model.layers.1.mlp.up", "x.up", "xup", "up", "layers.12.mlp.down", "mlp.down", "a.mlp.down", "a.gate"]
    config = config_with(tmp_path, r=9, rank_pattern=entries)

    for name in [*names, "a.q_proj", "q", "aq", "", "layers.1.mlp.up.x"]:
        assert config.rank_of(name) == entries.get(get_pattern_key(entries, name), 9), name


@pytest.mark.parametrize(
    "key",
    [
        *("(a*)*b", "(?=a)b", r"(a)\1", "a*a*a*a*b", "a{1,2}{3}", "x" * 2000 + "*", "a++b"),
        *("a?" * 30 + "a" * 30, "(aa|aa)" * 30 + "b", "(a|(b|(a|b)(a|b)))" * 9 + "c", r"\\*" * 4 + "b"),
    ],
)
def test_an_expression_that_could_take_years_is_not_run(key: str, tmp_path: Path) -> None:
    as_pattern = json.dumps({"peft_type": "LORA", "alpha_pattern": {key: 1.0}}).encode()

    assert refusal(tmp_path, as_pattern).slug == "adapter-bad-config"
    assert config_with(tmp_path, target_modules=key).targets.not_run


def test_an_expression_that_is_run_ends(tmp_path: Path) -> None:
    """With others of its kind this would take years."""
    patterns = {"a*a*a*b": 1.0, "(aa|a)" * 13 + "b": 1.0, r".*\.(q|k|v|o)_proj|[(*|+?]{2}": 2.0}
    config = config_with(tmp_path, lora_alpha=9, alpha_pattern=patterns)

    for name in (".".join(["a" * 60] * 3), "a" * 200, ".".join("a" * 24), "a" * 100_000, "." * 100_000):
        assert config.alpha_of(name) == 9
    assert config.alpha_of("x.layers.1.k_proj") == 2


def test_an_expression_that_is_not_run_targets_all_and_excludes_nothing(tmp_path: Path) -> None:
    unsloth = r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|v_proj).*?)"

    assert config_with(tmp_path, target_modules=unsloth).targets_module("model.layers.0.self_attn.q_proj")
    assert config_with(tmp_path, exclude_modules=unsloth).targets_module("model.layers.0.self_attn.k_proj")


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_a_folder(missing: str, tmp_path: Path) -> None:
    folder = made.write_adapter(tmp_path / "a", factors())
    (folder / missing).unlink()

    with refused("adapter-not-found", AdapterError, match=missing):
        open_adapter(folder)


def test_a_pickle_of_tensors_is_read_and_any_other_is_not_run(tmp_path: Path) -> None:
    folder = made.write_adapter(tmp_path / "a", factors())
    (folder / "adapter_model.safetensors").unlink()
    torch.save(factors(), folder / "adapter_model.bin")
    with open_adapter(folder) as adapter:
        down, up = adapter.factors(adapter.parts[0])
    torch.save({"model": print}, folder / "adapter_model.bin")

    assert (down.shape, up.shape) == ((2, 32), (32, 2))
    assert bool((up == 1).all())
    with refused("pickled-weights", CheckpointError):
        open_adapter(folder)


def test_a_file_that_was_cut_short(tmp_path: Path) -> None:
    folder = made.write_adapter(tmp_path / "a", factors())
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])

    with pytest.raises(HeaderError):
        open_adapter(folder)


@pytest.mark.parametrize("name", ["", "nowhere", "\0", "a\nb"])
def test_a_folder_that_does_not_exist(name: str, tmp_path: Path) -> None:
    with pytest.raises(DeltarankError):
        open_adapter(tmp_path / name)


def test_each_unused_tensor_has_its_reason(tmp_path: Path) -> None:
    weights = {
        **factors(),
        "model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(2, 32),
        f"{STEM}x.lora_A.weight": torch.ones(2, 32),
        f"{STEM}y.lora_A.weight": torch.ones(2, 32),
        f"{STEM}y.lora_B.weight": torch.ones(32, 3),
        f"{STEM}z.lora_A.weight": torch.ones(32),
        f"{STEM}z.lora_B.weight": torch.ones(32, 2),
        f"{STEM}i.lora_A.weight": torch.ones(2, 32, dtype=torch.complex64),
        f"{STEM}i.lora_B.weight": torch.ones(32, 2),
        f"{STEM}m.lora_magnitude_vector": torch.ones(32),
    }
    with open_adapter(made.write_adapter(tmp_path / "a", weights)) as adapter:
        reasons = {entry.name.removeprefix(STEM[:-6]): entry for entry in adapter.unused}

    assert [part.module for part in adapter.parts] == ["model.layers.0.self_attn.q_proj"]
    assert len(reasons) == 9
    assert "missing" in reasons["model.layers.0.mlp.up_proj.lora_A.weight"].reason
    assert "missing" in reasons["q_projx.lora_A.weight"].reason
    assert "rank 2 and B has rank 3" in reasons["q_projy.lora_A.weight"].reason
    assert "two non-empty matrices" in reasons["q_projz.lora_A.weight"].reason
    assert "C64" in reasons["q_proji.lora_A.weight"].reason
    assert "missing" in reasons["q_proji.lora_B.weight"].reason
