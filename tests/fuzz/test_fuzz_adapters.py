"""Untrusted adapters: a configuration, tensors under any name, and both against a real pair."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

import deltarank
from deltarank.adapters import LoraAdapter, LoraConfig, open_adapter
from fuzz.hostile import JSON, WORDS, as_json, cases, spoilt, survives, torn

CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": False,
    "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.(up|down)_proj": 1},
    "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 2.5},
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": ["lm_head"],
    "target_modules": ["q_proj", "v_proj"],
    "exclude_modules": r".*vision.*",
    "init_lora_weights": True,
}
EXPRESSIONS = st.text(r"ab.*+?{}()[]|\^$,1", max_size=14) | st.sampled_from(
    [
        *("(a*)*b", "(a|a)*b", "(a|aa)+$", ".*.*.*.*x", "a{1000}{1000}", "(?:a?){40}a{40}", "a?" * 40 + "a" * 40),
        *("(aa|aa)" * 40, r"(\w+\s?)+$", "[" * 300, "((" * 400, "(a|" * 200, r"\\*" * 30),
    ]
)
NAMES = ["model.layers.0.self_attn.q_proj", "a" * 200, "a.a.a.a.b", "", "..", "a" * 40 + "!", r"\\" * 60, "a." * 20]


def check_config(text: bytes, folder: Path) -> None:
    """A configuration that is accepted has valid ranks and alphas for every module."""

    def action() -> LoraConfig:
        with open_adapter(write(folder, text, save(FACTORS))) as adapter:
            config = adapter.config
        for name in NAMES:
            assert 1 <= config.rank_of(name) <= 1_000_000
            assert math.isfinite(config.alpha_of(name))
            config.targets_module(name)
            config.saves_module(name)
        return config

    survives(action)


@given(text=spoilt(CONFIG).map(as_json) | torn(as_json(CONFIG)) | JSON.map(as_json))
@cases(250)
def test_an_edited_configuration(text: bytes, tmp_path: Path) -> None:
    check_config(text, tmp_path)


@given(ranks=st.dictionaries(EXPRESSIONS, st.integers(1, 9), max_size=3), targets=EXPRESSIONS)
@cases(100)
def test_a_configuration_full_of_expressions(ranks: dict[str, int], targets: str, tmp_path: Path) -> None:
    config = CONFIG | {"rank_pattern": ranks, "target_modules": targets, "exclude_modules": targets}
    check_config(as_json(config), tmp_path)


STEM = "base_model.model.model.layers.0.self_attn.q_proj"
FACTORS = {f"{STEM}.lora_A.weight": torch.ones(2, 8), f"{STEM}.lora_B.weight": torch.ones(8, 2)}
KEYS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(["base_model.model.", "", "base_model.", "base_model.model.base_model.model."]),
        st.sampled_from(["model.layers.0.self_attn.q_proj", "lm_head", "model.embed_tokens", "model.norm", "", "x"])
        | WORDS,
        st.sampled_from([".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B", ".lora_B.bias"])
        | st.sampled_from(
            [".weight", ".bias", ".base_layer.weight", ".lora_magnitude_vector", ".lora_A.default.weight", ""]
        ),
    ),
)
SHAPES = st.sampled_from([(2, 8), (8, 2), (3, 8), (8, 3), (8,), (), (0, 8), (8, 0), (2, 2, 2), (12, 8), (2, 12), (1,)])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.float8_e4m3fn, torch.bool])


def write(folder: Path, config: bytes, weights: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder


def filled(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, 0.5, dtype=torch.float32).to(dtype)


@given(weights=torn(save(FACTORS)))
@cases(100)
def test_a_file_of_factors_with_edited_bytes(weights: bytes, tmp_path: Path) -> None:
    def action() -> LoraAdapter:
        with open_adapter(write(tmp_path / "a", as_json(CONFIG), weights)) as adapter:
            return adapter

    adapter = survives(action)
    if adapter is not None:
        assert len(adapter.parts) + len(adapter.unused) >= len(adapter.file.tensors) / 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("pair")
    shapes = {"model.layers.0.self_attn.q_proj.weight": (8, 8), "model.embed_tokens.weight": (12, 8)}
    shapes |= {"model.norm.weight": (8,), "lm_head.weight": (12, 8)}
    tensors = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    for side, moved in (("base", 0.0), ("finetune", 0.25)):
        (home / side).mkdir()
        moved_tensors = {name: tensor + moved for name, tensor in tensors.items()}
        (home / side / "model.safetensors").write_bytes(save(moved_tensors))
        (home / side / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return home / "base", home / "finetune"


@given(
    weights=st.dictionaries(KEYS, st.builds(filled, SHAPES, DTYPES), max_size=4),
    config=st.just(CONFIG) | spoilt(CONFIG),
)
@cases(100)
def test_an_adapter_of_any_tensors_held_against_a_pair(
    weights: dict[str, torch.Tensor], config: Any, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The verification is refused, or all of its figures are numbers."""
    weights = {name: w for name, w in weights.items() if "\0" not in name}
    folder = write(tmp_path / "a", as_json(config), save(weights))
    found = survives(lambda: deltarank.verify(*pair, folder))

    if found is not None:
        json.dumps(found.to_plain(), allow_nan=False)
