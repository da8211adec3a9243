"""Adapters of other tools: those of mlx-lm are read, all others are refused by name, with what converts them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import deltarank
import peft_adapters as made
from deltarank.errors import AdapterError
from deltarank.results import FitKind
from refusals import refused

Q, V = (f"model.layers.{{}}.self_attn.{word}_proj" for word in "qv")
MLX_CONFIG = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 4, "dropout": 0.0, "scale": 20.0}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write_base(made.llama, tmp_path_factory.mktemp("models") / "base")


def mlx_weights(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(2):
        for module, outputs in ((Q, 32), (V, 16)):
            name = module.format(layer)
            weights[f"{name}.lora_a"] = 0.1 * torch.randn(32, 4, generator=generator)
            weights[f"{name}.lora_b"] = 0.1 * torch.randn(4, outputs, generator=generator)
    return weights


def write_mlx(folder: Path, weights: Mapping[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(dict(weights), folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**MLX_CONFIG, **config}))
    return folder


def fused(base: Path, weights: Mapping[str, Tensor], folder: Path, scale: float = 20.0) -> Path:
    """y = x W' + scale (x A) B of mlx-lm, as a checkpoint."""
    merged = dict(made.tensors(base))
    for key in (key for key in weights if key.endswith(".lora_a")):
        name = key.removesuffix(".lora_a")
        merged[f"{name}.weight"] = merged[f"{name}.weight"] + scale * (weights[key] @ weights[f"{name}.lora_b"]).T
    return made.write_checkpoint(folder, merged, base)


def test_an_adapter_of_mlx_adds_what_mlx_adds(base: Path, tmp_path: Path) -> None:
    adapter = write_mlx(tmp_path / "mlx", mlx_weights())
    tuned = fused(base, mlx_weights(), tmp_path / "fused")
    seen = deltarank.verify(base, tuned, adapter)
    ours = deltarank.compare(base, adapter, output=tmp_path / "a", ranks=(2, 4))
    truth = deltarank.compare(base, tuned, output=tmp_path / "b", ranks=(2, 4))

    assert seen.kind is FitKind.OPTIMAL
    assert seen.whole.share_lost == pytest.approx(0, abs=1e-9)
    assert any("mlx-lm" in note and "PEFT and the servers do not load" in note for note in seen.notes)
    assert {m.name for m in ours.matrices if m.frobenius} == {f"{x.format(i)}.weight" for x in (Q, V) for i in (0, 1)}
    wanted = {matrix.name: matrix.frobenius for matrix in truth.matrices}
    assert {matrix.name: matrix.frobenius for matrix in ours.matrices} == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_the_file_that_is_named_is_read(base: Path, tmp_path: Path) -> None:
    """mlx-lm leaves the adapters of earlier steps beside the last."""
    adapter = write_mlx(tmp_path / "mlx", mlx_weights())
    save_file(mlx_weights(1), adapter / "0000100_adapters.safetensors")
    tuned = fused(base, mlx_weights(1), tmp_path / "fused")
    last = deltarank.compare(base, adapter / "adapters.safetensors", output=tmp_path / "a", ranks=(4,))
    earlier = deltarank.compare(base, adapter / "0000100_adapters.safetensors", output=tmp_path / "b", ranks=(4,))
    truth = deltarank.compare(base, tuned, output=tmp_path / "c", ranks=(4,))

    assert earlier.totals.whole.energy == pytest.approx(truth.totals.whole.energy, rel=1e-5)
    assert last.totals.whole.energy != pytest.approx(truth.totals.whole.energy, rel=1e-2)


@pytest.mark.parametrize("server", ["peft", "vllm", "llama.cpp"])
def test_no_server_loads_an_adapter_of_mlx(base: Path, tmp_path: Path, server: str) -> None:
    adapter = write_mlx(tmp_path / "mlx", mlx_weights())
    with refused("adapter-refused", AdapterError, match="mlx-lm"):
        deltarank.verify(base, fused(base, mlx_weights(), tmp_path / "fused"), adapter, server=server)


MLX_REFUSED = {
    "full": ({"fine_tune_type": "full"}, {}, "adapter-unsupported"),
    "DoRA": ({"fine_tune_type": "dora"}, {}, "adapter-unsupported"),
    "DoRA by its tensors": ({}, {"model.layers.0.self_attn.q_proj.m": torch.ones(32)}, "adapter-unsupported"),
    "stacked experts": (
        {},
        {"model.x.lora_a": torch.ones(2, 4, 8), "model.x.lora_b": torch.ones(2, 8, 4)},
        "adapter-unsupported",
    ),
    "no scale": ({"lora_parameters": {"rank": 4}}, {}, "adapter-bad-config"),
}


@pytest.mark.parametrize("case", MLX_REFUSED)
def test_what_is_no_plain_lora_of_mlx_is_refused(base: Path, tmp_path: Path, case: str) -> None:
    config, more, slug = MLX_REFUSED[case]
    adapter = write_mlx(tmp_path / "mlx", mlx_weights() | more, **config)
    with refused(slug, AdapterError):
        deltarank.compare(base, adapter, output=tmp_path / "run")


FACTORS = (torch.ones(2, 32), torch.ones(32, 2))
OTHERS = {
    "kohya": ("lora_unet_down_blocks_0_attn_to_q", "lora_down.weight", "lora_up.weight"),
    "kohya's text encoder": ("lora_te1_text_model_encoder_layers_0_q_proj", "lora_down.weight", "lora_up.weight"),
    "diffusers": ("transformer.transformer_blocks.0.attn.to_q", "lora_A.weight", "lora_B.weight"),
    "diffusers' unet": ("unet.down_blocks.0.attn.to_q", "lora.down.weight", "lora.up.weight"),
    "ComfyUI": ("diffusion_model.blocks.0.to_q", "lora_A.weight", "lora_B.weight"),
    "mistral-finetune": ("layers.0.attention.wq", "lora_A.weight", "lora_B.weight"),
    "torchtune": ("layers.0.attn.q_proj", "lora_a.weight", "lora_b.weight"),
    "mlx-lm": ("model.layers.0.self_attn.q_proj", "lora_a", "lora_b"),
    "without its adapter_config.json": ("base_model.model.x.q_proj", "lora_A.weight", "lora_B.weight"),
}


@pytest.mark.parametrize("name", ["lora.safetensors", "pytorch_lora_weights.safetensors", "adapter_0.safetensors"])
@pytest.mark.parametrize("case", OTHERS)
def test_other_formats_are_named(base: Path, tmp_path: Path, case: str, name: str) -> None:
    module, down, up = OTHERS[case]
    save_file({f"{module}.{down}": FACTORS[0], f"{module}.{up}": FACTORS[1]}, tmp_path / name)
    for given in (tmp_path, tmp_path / name):
        with refused("adapter-other-format", AdapterError, match=case.split("'")[0]):
            deltarank.compare(base, given, output=tmp_path / "run")


def test_an_adapter_of_torchtune_in_pickle(base: Path, tmp_path: Path) -> None:
    torch.save({"layers.0.attn.q_proj.lora_a.weight": FACTORS[0]}, tmp_path / "adapter_0.pt")
    with refused("adapter-other-format", AdapterError, match="torchtune"):
        deltarank.compare(base, tmp_path, output=tmp_path / "run")
